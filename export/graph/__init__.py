"""Lower a trained flow to one that engines compute quickly, and write it to ONNX.

The modules come in this order. `ir` holds the flow as data, `passes` rewrites it, `emit` makes a torch module of it,
and `onnx_export` traces that module to a file.
"""
