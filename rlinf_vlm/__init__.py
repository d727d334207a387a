"""rlinf_vlm: a trainer for vision-language models. ARCHITECTURE.md is the tour."""
