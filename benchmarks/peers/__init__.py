"""Octavo beside llama.cpp: model files in, samples of both engines, floors, tables and charts out."""
