"""Every tensor that peft trains, compared with the adapter that is planned."""

import warnings

import pytest
from meta_models import build_meta_model, small_config

from qmem.architecture import adapt, auto_class, describe
from qmem.catalogue import all_models
from qmem.job import make_job
from qmem.profiler.prepare import TASK_TYPES

pytestmark = pytest.mark.libraries
LINEARS = (
    "q_proj",
    "down_proj",
    "up_proj",
    "gate_proj",
    "fc1",
    "dense",
    "c_attn",
    "c_proj",
    "dense_h_to_4h",
    "qkv_proj",
    "query",
    "value",
    "q",
    "wo",
)


def peft_model(config, job):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft", minversion="0.21")
    targets = job.targets if isinstance(job.targets, str) else list(job.targets)
    lora = peft.LoraConfig(r=job.rank, target_modules=targets, modules_to_save=list(job.modules_to_save) or None,
                           bias=job.bias, use_dora=job.dora,
                           task_type=TASK_TYPES.get(auto_class(config["model_type"])))  # fmt: skip
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return peft.get_peft_model(build_meta_model(config), lora)


def assert_same_adapter(config, **fields):
    job = make_job({"model": "any", **fields})
    plan, model = adapt(describe(config), job), peft_model(config, job)
    trained = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    lora = [entry for entry in trained if ".lora_" in entry[0]]
    assert lora == [(p.name, p.shape) for p in plan.parameters]
    rest = sorted(entry for entry in trained if ".lora_" not in entry[0])
    assert rest == sorted((p.name, p.shape) for p in (*plan.saved, *plan.biases))
    assert model.get_nb_trainable_parameters() == (plan.trainable, plan.total)


def some_linears(config, n=2):
    """Names of linears of a family; of fused experts both halves, as peft demands."""
    known = {linear.short_name for linear in describe(config).linears if linear.role == "linear"}
    return tuple(name for name in LINEARS if name in known)[:n]


def ends(config):
    """The last words of the names of the embedding and the head."""
    described = describe(config)
    return tuple(name.rpartition(".")[2] for name in (described.embedding, described.head))


def test_all_linear_adapts_what_peft_adapts(family):
    assert_same_adapter(small_config(family), rank=8)


def test_a_list_adapts_what_peft_adapts(family):
    assert_same_adapter(small_config(family), rank=16, targets=some_linears(small_config(family)))


def test_a_regular_expression_adapts_what_peft_adapts(family):
    words = "|".join(some_linears(small_config(family)))
    assert_same_adapter(small_config(family), rank=4, targets=rf".*\.[02]\..*\.({words})")


def test_every_bias_is_trained_as_in_peft(family):
    assert_same_adapter(small_config(family), targets=some_linears(small_config(family), 1), bias="all")


def test_biases_of_adapted_linears_are_trained_as_in_peft(family):
    assert_same_adapter(small_config(family), targets=some_linears(small_config(family), 1), bias="lora_only")


def test_dora_adds_the_magnitudes_that_peft_adds(family):
    config = small_config(family)
    assert_same_adapter(config, targets=(some_linears(config)[0], *ends(config)), dora=True)


def test_saved_modules_are_copied_as_peft_copies_them(family):
    config = small_config(family)
    embedding = describe(config).embedding.rpartition(".")[2]
    assert_same_adapter(config, targets=some_linears(config), modules_to_save=(embedding, "lm_head"), bias="all")


def test_a_name_to_save_matches_at_any_letter_as_in_peft():
    assert_same_adapter(small_config("qwen3"), modules_to_save=("norm",))


def test_a_whole_block_can_be_saved_as_in_peft():
    assert_same_adapter(small_config("llama"), modules_to_save=("mlp",))


def test_embeddings_can_be_adapted_as_in_peft(family):
    config = small_config(family)
    assert_same_adapter(config, targets=ends(config))


@pytest.mark.parametrize("targets", [("w1", "w2", "w3"), ("w1", "w3", "q_proj"), ("w2", "gate"), r".*experts\.(w1|w3)"])
def test_old_names_of_mixtral_experts_reach_the_fused_parameters_as_in_peft(targets):
    assert_same_adapter(small_config("mixtral"), targets=targets)


def test_old_names_of_qwen3_experts_pass_dense_layers_by_as_in_peft():
    config = small_config("qwen3_moe")
    assert_same_adapter(config, targets=("gate_proj", "up_proj", "down_proj", "v_proj"))
    plan = adapt(describe(config), make_job({"model": "any", "targets": ("down_proj",)}))
    assert {module.name.split(".")[2] for module in plan.adapted} == {"0", "2"}


def test_fused_gate_and_up_projections_get_twice_the_rank():
    plan = adapt(describe(small_config("mixtral")), make_job({"model": "any", "rank": 8}))
    ranks = {module.name.rpartition(".")[2]: module.rank for module in plan.adapted}
    assert (ranks["gate_up_proj"], ranks["down_proj"], ranks["q_proj"]) == (16, 8, 8)


def plan_of(model_id, **fields):
    config = next(model.config for model in all_models() if model.id == model_id)
    return adapt(describe(config), make_job({"model": model_id, **fields}))


def test_rank_8_on_all_linears_of_qwen3_14b_trains_the_known_number():
    assert plan_of("Qwen/Qwen3-14B", rank=8).trainable == 32_112_640


def test_rank_16_on_all_linears_of_qwen2_1_5b_is_what_peft_prints():
    plan = plan_of("Qwen/Qwen2-1.5B", rank=16)
    assert (plan.trainable, plan.total) == (18_464_768, 1_562_179_072)


def test_full_fine_tuning_trains_every_parameter():
    described = describe(small_config("llama"))
    plan = adapt(described, make_job({"model": "any", "method": "full"}))
    assert plan.trainable == plan.total == described.n_parameters
    assert plan.parameters == plan.saved == plan.biases == ()
