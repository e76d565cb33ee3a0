"""alignment: post-training of language models by rounds that generate data, train and evaluate."""
