"""Build script; everything that does not depend on the machine is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["aadl_ext", "aadl_ext.*"]))
