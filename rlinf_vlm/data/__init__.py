"""From files to micro-batches: sources, dataset kinds, images, rendering, packing, order and loading of rows."""
