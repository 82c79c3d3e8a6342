"""A chat model from raw text: read the files of this folder in the order of the pipeline."""
