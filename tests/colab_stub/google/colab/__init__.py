"""What the notebook uses of Colab's own module, for a kernel that has this folder on its path."""
