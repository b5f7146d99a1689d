"""How an answer looks: data types and renderers that know nothing of the computation."""
