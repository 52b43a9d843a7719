"""Changes of a network that lie beside its weights: low rank (LoRA) and sparse, as files of PEFT and of others."""
