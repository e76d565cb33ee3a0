"""What is computed: worker functions, their options, and what is made of their results."""
