"""Pools on other machines: an agent on each runs the engine of its machine for a pool that is elsewhere.

One argument says where the workers are; runs, records, panels and `launch` stay as they are. ::

    pool = GPUPool(cluster=Slurm(nodes=2, gpus_per_node=4, time="2:00:00"))     # a batch job asks for the nodes
    pool = GPUPool(cluster=Ray("10.0.0.5:6379", nodes=2, gpus_per_node=4))      # a placement group does
    pool = GPUPool(cluster=Agents(nodes=2))      # you start the agents: it prints `mgpu-nb agent --connect FILE`
    pool = GPUPool(cluster=Agents(here=2))       # two of them on this machine, to try things out
    pool = GPUPool(cluster=Allocation())         # the nodes of the SLURM job that this process is in
    pool = GPUPool(cluster=Slurm(nodes=2, gpus_per_node=4, detach=True))      # runs outlive this process

On the command line every workload takes ``--cluster slurm --nodes 2 --gpus_per_node 4``, and likewise ``ray``,
``agents``, ``allocation`` and ``here``; ``mgpu-nb slurm WORKLOAD --nodes 2 --submit`` has a batch job run it all.
`launch(..., pool=pool)` and `launch(..., cluster=...)` make a process group over all nodes. ``notebooks/cluster.ipynb``
tells it as a story.

``gpu_ids``, ``slots`` and ``threads`` of the pool are meant on each node. Tasks start on the first node that is there;
`GPUPool.wait_for_slots` waits for all, `GPUPool.nodes` shows them. A device has the name of its node before it, and
records have it as ``host``.

What a cluster must give
------------------------
An installation
    mgpu_nb on the nodes, and here; for Ray ``pip install 'mgpu_nb[ray]'`` here. Worker protocol and minor versions of
    Python, torch and cloudpickle must be the same: a node that differs is refused in words, smaller differences are
    logged. Tasks find the packages of the node, then your own folders of ``sys.path`` where the node has them.
    Functions of notebook cells travel. A task for which a node lacks a module is tried on up to three others, which
    does not count as an attempt; its error then names module and node, and what to do.
A way to this machine
    The nodes dial one TCP port at one address of it. The address is that of the route to SLURM's controller, to the
    Ray cluster, or out of this machine; ``address=`` (of Ray ``host=``) names another, and ``port=`` a port that a
    firewall lets through. The port is closed while all nodes are there; it stays open where you have not said how many
    will come, ``Agents()``. Nothing on a node listens but rank 0 of a gang and what gloo and NCCL open.
A shared file system, or none
    SLURM's nodes need the Python environment, the current folder and your home, where the invitation is, under the same
    paths, and those of a detached run the folder of the run. Ray and agents of your own need nothing in common. Where a
    node has not the folder of a run, values, logs, metrics and `ValueOf` go over the connection, and the parent process
    keeps them; ``worker().folder`` is None there, ``worker().folder_note`` says why, and ``worker().need_folder()``
    raises that. Workloads whose tasks write files of their own need the folder on all nodes, and say so before any
    work.
Large values
    Go over the connection, which encrypts them: a gigabyte a second at the most. An agent that is on the machine of the
    pool, as one of the same user, shares memory with it instead.

What a node sees of your environment
------------------------------------
The variables of its agent; over them what you have set or removed here since this process began; over these
``GPUPool(env=...)``. So ``SLURMD_NODENAME``, ``TMPDIR`` or ``LD_LIBRARY_PATH`` stay those of the node.

When nodes come and go
----------------------
A node comes late
    Tasks start without it, and it takes its share when it is there. A gang begins when there are slots for all ranks.
    Of ``Agents()`` nobody knows how many will come: a task that takes more slots than are there waits for more, which
    the panel says, and a warning after a minute.
A node is lost
    Its connection has ended, or nothing came from it for 8 seconds. Its tasks run again elsewhere, whatever their
    ``retries``, three times at the most; notes of the record say so. So does a call of `GPUPool.submit` and `map`. A
    task may thus begin more than once, also where its first attempt had done its work and could not say so: what it
    does beside its value must bear that.
A gang loses a node
    All ranks are ended and begin again together, three times at the most. If a rank had returned, the gang is not tried
    again, and the records say why.
A node is taken away
    At SIGTERM or SIGINT of its agent, in a SLURM job a minute before the time limit, it takes no more tasks and ends
    with those it has. Where SIGTERM goes to all processes of a node at once, as at a pre-emption, its tasks were lost
    with it, and are tried elsewhere.
Another in its place
    Where the number of nodes is known, another agent is asked for; on SLURM on the same node, if the job still has it.
    So is one for an agent that has ended before it joined, once another node has slots.
A node does not come
    After three in a row that have ended at once, or joined and had no slots, and for a job that somebody has cancelled
    while it waited, none is asked for any more, also beside nodes that work: a warning, `GPUPool.wait_for_slots` and
    what needs more slots say why. A scheduler that refuses or does not answer is asked again, beside nodes that work
    for some minutes.
A node has nothing to do
    After ``idle`` seconds without a task, 300 unless you say otherwise, its agent ends and SLURM or Ray have what they
    gave for it, see `Slurm` and `Ray` for what they can take back. Nodes are asked for again when tasks wait, or
    `GPUPool.wait_for_slots` does; ``idle=None`` keeps them. Nodes of an `Allocation` and of a detached run stay until
    the end, and so do agents that you start yourself: nobody could start them again.
No node is left
    Tasks wait for ``start_timeout`` seconds of the pool, then end with `NoSlots` and what the cluster said.
The pool is shut down, or this process is gone
    Agents end with their connections, workers with their agents, and the job or placement group with those. The jobs of
    a detached pool go on until their runs have ended.

Runs that outlive the notebook
------------------------------
``Slurm(detach=True)`` makes each `GPUPool.run` a batch job of its own. On its first node the job makes the pool, with
agents on all of its nodes, so the notebook may be closed, and nothing on a node dials it. ::

    pool = GPUPool(cluster=Slurm(nodes=2, gpus_per_node=4, time="8:00:00", detach=True))
    run = pool.run(tasks, name="fits", folder="runs/fits")       # returns once sbatch has taken the job
    run = Run.open("runs/fits")                                  # tomorrow, in another notebook

Both are followed live: panel, `Run.progress`, records, values, metrics and logs come from the run's folder, which must
be on a file system that this machine and the nodes share, as must the environment and the current folder. Which tasks
run is not known there. The panel says what squeue says (it is asked every ten seconds at most), ``run.cancel()`` ends
the job and leaves records, so does ``scancel``.

What the job needs and leaves is in ``detached`` in the run's folder: ``job.json`` with its number, its script, its
output ``slurm-<number>.out``, and ``tasks.pickle`` until all tasks are ok. If the job ends early, the run is
interrupted, and says how the job ended: `GPUPool.run` with the same tasks, name and folder goes on with it, on a
detached pool or any other, and so does ``sbatch runs/fits/detached/run.sbatch``.

A detached pool has runs, sweeps and `launch`, and takes the options of any pool; it has no calls (`GPUPool.submit`,
`GPUPool.map`), no slots and no retry in this process, and says what to do instead. Listeners of a run and workloads
that write as their run goes on need a process that follows it: for workloads take ``mgpu-nb slurm WORKLOAD --submit``.

Security
--------
Each pool has a secret and a certificate of its own, in its invitation: a file of mode 0600 in a folder of mode 0700,
``~/.local/state/mgpu_nb/invitations``, which is removed with the pool. Who can read it can join the pool, and so run
code as you and see what tasks are sent. The connection is TLS 1.3; an agent takes this certificate alone, and both
prove by HMAC that they know the secret before anything else is read. Ray passes the invitation to its nodes, so a
cluster that is not on this machine must have a token, or be trusted by ``trust=True``. The tasks of a detached run are
a file of mode 0600, which its job reads only if it has the SHA-256 that is in the script which SLURM keeps. The ports
of a gang are as open as with torchrun: whoever reaches them can join, so the network between the nodes must be one that
you trust. SECURITY.md has more.

When nobody dials in
--------------------
The pool says what it waits for when it is shown, in the panel of its runs, and in the error at the end.

``SLURM job 17: PENDING (Resources)``
    The cluster is busy: wait, or ask for fewer nodes, a shorter time or another partition. Of reasons that do not pass
    by themselves it says what to do: ``PENDING (PartitionTimeLimit: the partition allows less time: give time)``.
``Nobody answers at 10.0.0.5 port 40001``
    An agent says so, in the output of its job or on its terminal. ``nc -vz 10.0.0.5 40001`` on the node tells whether
    the port is reached. If not, the address is one that nodes do not reach: give ``address=``, ``ip address`` lists
    yours; or a firewall is between: give a ``port=`` that it lets through. A pool that has all of its nodes does not
    answer either.
``The pool at ... refused this agent: node n1 has torch 2.4.1, this process 2.6.0``
    Start the agent with the Python of this environment, or one of the same versions; for SLURM see ``environment=``.
``There is no invitation FILE``
    The pool has ended, or the node does not see this folder: copy the file there (``scp -p``) and name the copy.
``... was reached, but it has another certificate than the invitation's``
    The invitation is of a pool that has ended, and another has its port now.
``has no slots for this pool``
    The node has not the GPUs that ``gpu_ids`` or ``slots`` ask for; ``mgpu-nb devices`` on it lists what it has.

What agents log goes to the logger ``mgpu_nb`` of this process, behind the name of the node.
"""
