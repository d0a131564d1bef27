"""Jobs read from the real objects of peft, transformers and (by its attributes) TRL."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qmem.errors import UnsupportedError, UsageError
from qmem.job import Job, job_from_objects

pytestmark = pytest.mark.libraries

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}


def lora(**settings: Any):
    return peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


def quantized(**settings: Any):
    return transformers.BitsAndBytesConfig(**{**NF4, **settings})


def arguments(tmp_path, **settings: Any):
    """As they are built where there is no GPU: bf16 is refused there without use_cpu."""
    return transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def supervised(tmp_path, **settings: Any):
    """What TRL 1.16's SFTConfig is: TrainingArguments with its own attributes and defaults."""

    class SFTConfig(transformers.TrainingArguments):
        pass

    config = SFTConfig(output_dir=str(tmp_path), bf16=True, gradient_checkpointing=True, use_cpu=True)
    own = {"max_length": 1024, "packing": False, "packing_strategy": "bfd", "padding_free": False,
           "activation_offloading": False, "loss_type": "nll", "router_aux_loss_coef": None,
           "pad_to_multiple_of": None, "model_init_kwargs": None}  # fmt: skip
    for name, setting in {**own, **settings}.items():
        setattr(config, name, setting)
    return config


def test_the_common_qlora_recipe_is_the_default_job(tmp_path) -> None:
    job = job_from_objects(
        "Qwen3-14B",
        lora_config=lora(),
        quantization_config=quantized(),
        training_arguments=arguments(
            tmp_path,
            per_device_train_batch_size=1,
            gradient_checkpointing=True,
            bf16=True,
            optim="paged_adamw_32bit",
        ),
    )
    assert job == Job(model="Qwen3-14B", quant="nf4", amp=True)


def test_every_field_of_the_adapter_is_carried() -> None:
    config = lora(
        r=32,
        lora_alpha=64,
        lora_dropout=0.1,
        bias="lora_only",
        use_rslora=True,
        use_dora=True,
        target_modules=["v_proj", "q_proj"],
        modules_to_save=["lm_head"],
        alpha_pattern={"q_proj": 3},
    )
    assert job_from_objects("m", lora_config=config) == Job(
        model="m",
        method="lora",
        rank=32,
        alpha=64,
        dropout=0.1,
        bias="lora_only",
        rslora=True,
        dora=True,
        targets=("q_proj", "v_proj"),
        modules_to_save=("lm_head",),
    )


def test_a_regular_expression_stays_one() -> None:
    job = job_from_objects("m", lora_config=lora(target_modules=r".*\.(q|v)_proj"))
    assert job.targets == r".*\.(q|v)_proj"


def test_targets_that_peft_would_choose_must_be_named() -> None:
    with pytest.raises(UsageError, match="target_modules is None"):
        job_from_objects("m", lora_config=lora(target_modules=None))
    assert job_from_objects("m", lora_config=lora(target_modules=None), targets=("q_proj",)).targets == ("q_proj",)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"layers_to_transform": [0], "target_modules": ["q_proj"]}, "layers_to_transform"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"inference_mode": True}, "inference_mode"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    ],
)
def test_what_an_adapter_cannot_carry_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"LoraConfig\.{named} is"):
        job_from_objects("m", lora_config=lora(**settings))


def test_an_attribute_of_a_later_peft_is_refused_once_it_is_switched_on() -> None:
    config = lora()
    config.use_something_new = False
    assert job_from_objects("m", lora_config=config).rank == 8
    config.use_something_new = True
    with pytest.raises(UnsupportedError, match="use_something_new is True"):
        job_from_objects("m", lora_config=config)


def test_every_attribute_of_the_installed_configurations_is_known_while_it_rests() -> None:
    job = job_from_objects("m", lora_config=lora(), quantization_config=quantized())
    assert job == Job(model="m", quant="nf4")


def test_another_kind_of_adapter_is_refused() -> None:
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)
    with pytest.raises(UnsupportedError, match="AdaLoraConfig is an adapter of type ADALORA"):
        job_from_objects("m", lora_config=config)


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32")])
def test_dtypes_of_torch_become_names(dtype: str, name: str) -> None:
    config = quantized(bnb_4bit_compute_dtype=getattr(torch, dtype), bnb_4bit_quant_storage=getattr(torch, dtype))
    job = job_from_objects("m", lora_config=lora(), quantization_config=config)
    assert (job.compute_dtype, job.quant_storage) == (name, name)


def test_the_defaults_of_a_quantization_config_are_its_own_not_the_recipe() -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    job = job_from_objects("m", lora_config=lora(), quantization_config=config)
    assert (job.quant, job.double_quant, job.compute_dtype, job.quant_storage) == ("fp4", False, "fp32", "uint8")


def test_int8_and_its_skipped_modules_are_carried() -> None:
    config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "gate"])
    job = job_from_objects("m", lora_config=lora(), quantization_config=config)
    assert (job.quant, job.skip_modules) == ("int8", ("lm_head", "gate"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 4.0}, "llm_int8_threshold"),
        ({"llm_int8_enable_fp32_cpu_offload": True}, "llm_int8_enable_fp32_cpu_offload"),
        ({"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
        ({"llm_int8_skip_modules": []}, "llm_int8_skip_modules"),
    ],
)
def test_what_a_quantization_cannot_carry_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"BitsAndBytesConfig\.{named} is"):
        job_from_objects("m", lora_config=lora(), quantization_config=quantized(**settings))


def test_other_quantizations_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="quantizes with hqq"):
        job_from_objects("m", lora_config=lora(), quantization_config=SimpleNamespace(quant_method="hqq"))


def test_a_quantized_base_needs_an_adapter() -> None:
    with pytest.raises(UsageError, match="quantization_config without lora_config"):
        job_from_objects("m", quantization_config=quantized())
    with pytest.raises(UsageError, match="neither 4 nor 8 bit"):
        job_from_objects("m", lora_config=lora(), quantization_config=transformers.BitsAndBytesConfig())


def test_training_arguments_alone_mean_full_fine_tuning_with_their_own_defaults(tmp_path) -> None:
    job = job_from_objects("m", training_arguments=arguments(tmp_path, gradient_accumulation_steps=4))
    assert job == Job(
        model="m",
        method="full",
        batch=8,
        grad_accum=4,
        optimizer=arguments(tmp_path).optim.value,
        checkpointing=False,
        amp=False,
    )


@pytest.mark.parametrize(("reentrant", "fact"), [(True, "yes"), (False, "no")])
def test_reentrant_checkpointing_becomes_a_fact(tmp_path, reentrant: bool, fact: str) -> None:
    given = arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    job = job_from_objects("m", training_arguments=given)
    assert (job.checkpointing, job.facts) == (True, {"reentrant": fact})
    assert job_from_objects("m", training_arguments=given, facts={"reentrant": "x", "a": "b"}).facts == {
        "reentrant": "x",
        "a": "b",
    }


def test_half_precision_becomes_autocast_in_its_dtype(tmp_path) -> None:
    given = arguments(tmp_path)
    given.fp16 = True
    job = job_from_objects("m", lora_config=lora(), training_arguments=given)
    assert (job.amp, job.compute_dtype) == (True, "fp16")


def test_two_compute_dtypes_are_refused_until_one_is_chosen(tmp_path) -> None:
    objects = {
        "lora_config": lora(),
        "quantization_config": transformers.BitsAndBytesConfig(load_in_4bit=True),
        "training_arguments": arguments(tmp_path, bf16=True),
    }
    with pytest.raises(UnsupportedError, match="autocast runs in bf16, but bnb_4bit_compute_dtype is fp32"):
        job_from_objects("m", **objects)
    assert job_from_objects("m", **objects, compute_dtype="bf16").compute_dtype == "bf16"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("deepspeed", "ds.json"),
        ("fsdp", "full_shard"),
        ("torch_compile", True),
        ("use_liger_kernel", True),
        ("auto_find_batch_size", True),
        ("torch_empty_cache_steps", 4),
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("optim_target_modules", "all-linear"),
        ("full_determinism", True),
        ("padding_free", True),
        ("activation_offloading", True),
        ("loss_type", "dft"),
        ("pad_to_multiple_of", 64),
    ],
)
def test_what_training_arguments_cannot_carry_is_refused_by_name(tmp_path, name: str, setting: Any) -> None:
    given = arguments(tmp_path)
    setattr(given, name, setting)
    with pytest.raises(UnsupportedError, match=rf"TrainingArguments\.{name} is"):
        job_from_objects("m", training_arguments=given)


@pytest.mark.parametrize("keywords", [{"every_n_layers": 2}, {"offload": True}, {"context_fn": print}])
def test_partial_checkpointing_is_refused_by_name(tmp_path, keywords: dict[str, Any]) -> None:
    given = arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=keywords)
    with pytest.raises(UnsupportedError, match=rf"checkpointing_kwargs\['{next(iter(keywords))}'\] is"):
        job_from_objects("m", training_arguments=given)


def test_an_optimizer_that_is_not_modelled_is_named(tmp_path) -> None:
    with pytest.raises(UsageError, match="optimizer is 'galore_adamw', but must be one of adamw_torch"):
        job_from_objects("m", training_arguments=arguments(tmp_path, optim="galore_adamw"))


def test_evaluation_is_left_out_with_a_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match="a job describes the training steps only") as caught:
        job_from_objects("m", training_arguments=arguments(tmp_path, eval_strategy="epoch"))
    assert caught[0].filename == __file__


def test_a_supervised_config_brings_its_sequence_and_its_stack(tmp_path) -> None:
    given = supervised(
        tmp_path, max_length=4096, model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"}
    )
    job = job_from_objects("m", lora_config=lora(), training_arguments=given)
    assert (job.stack, job.seq, job.dtype, job.attention, job.amp) == ("trl", 4096, "bf16", "eager", True)
    assert job_from_objects("m", training_arguments=given, stack="hf").stack == "hf"


def test_a_supervised_config_without_a_length_must_be_given_one(tmp_path) -> None:
    given = supervised(tmp_path, max_length=None)
    with pytest.raises(UsageError, match="max_length is None"):
        job_from_objects("m", training_arguments=given)
    assert job_from_objects("m", training_arguments=given, seq=512).seq == 512


def test_packing_that_flattens_the_batch_is_refused(tmp_path) -> None:
    with pytest.raises(UnsupportedError, match="packing_strategy is 'bfd'"):
        job_from_objects("m", training_arguments=supervised(tmp_path, packing=True))
    whole = supervised(tmp_path, packing=True, packing_strategy="wrapped")
    assert job_from_objects("m", training_arguments=whole).seq == 1024


def test_other_keywords_of_loading_are_refused(tmp_path) -> None:
    given = supervised(tmp_path, model_init_kwargs={"device_map": "auto"})
    with pytest.raises(UnsupportedError, match=r"model_init_kwargs\['device_map'\] is 'auto'"):
        job_from_objects("m", training_arguments=given)


def test_without_any_object_there_is_nothing_to_read() -> None:
    with pytest.raises(UsageError, match="no object was given"):
        job_from_objects("m")


def test_reading_objects_imports_none_of_their_libraries() -> None:
    program = (
        "import sys; from types import SimpleNamespace; from qmem.job import job_from_objects;"
        "adapter = SimpleNamespace(r=4, target_modules='all-linear', modules_to_save=None, peft_type='LORA',"
        " task_type=None, init_lora_weights=True);"
        "assert job_from_objects('m', lora_config=adapter).rank == 4;"
        "print([name for name in ('torch', 'transformers', 'peft', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
