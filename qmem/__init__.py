"""qmem: a memory planner and profiler for QLoRA, LoRA and full fine-tuning."""
