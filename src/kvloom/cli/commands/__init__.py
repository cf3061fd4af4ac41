"""The commands of the `kvloom` program, a module for each group. They know the façade, not each other."""
