"""The paper's experiments: ``python -m aadl_ext reproduce NAME``; see docs/paper.md."""
