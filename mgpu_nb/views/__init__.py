"""Data shown as HTML, widgets or pictures, from plain data: views know no run, study or workload."""
