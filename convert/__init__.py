"""PyTorch <-> JAX, exact both ways and without torch.

`internlm2`, `phi3`, `clip`, `intern_vit`, `gate`: tables of rules, which `engine` applies; `transforms` is what they
name. `files`: safetensors in and out; `torch_files`: state dicts of torch.save; `hf_config`: config.json; `tokenizer`:
released tokenisers; `check`: comparison with recorded outputs of the original.
"""
