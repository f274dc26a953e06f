"""A reranker inside other libraries: one module a library, which imports that library and nothing heavier."""
