"""The maths of training as pure functions: losses, advantages and schedules.

The tables name what a config may choose, as ``registry.resolve`` reads them; ``pkg.module:function`` of the same
signature works wherever a name does. Importing this module loads no torch.
"""

ADVANTAGES = {
    "grpo": "rlinf_vlm.algorithms.advantages:grpo",
    "grpo_no_std": "rlinf_vlm.algorithms.advantages:grpo_no_std",
    "rloo": "rlinf_vlm.algorithms.advantages:rloo",
    "reinpp": "rlinf_vlm.algorithms.advantages:reinpp",
    "reinpp_baseline": "rlinf_vlm.algorithms.advantages:reinpp_baseline",
}
"""(AdvantageInput) -> advantages [N] float32."""

POLICY_LOSSES = {
    "clipped": "rlinf_vlm.algorithms.policy_loss:clipped",
    "gspo": "rlinf_vlm.algorithms.policy_loss:gspo",
    "cispo": "rlinf_vlm.algorithms.policy_loss:cispo",
}
"""(PolicyTokens, ClipSettings) -> PolicyLoss."""

KL_ESTIMATORS = {
    "k1": "rlinf_vlm.algorithms.kl:k1",
    "k2": "rlinf_vlm.algorithms.kl:k2",
    "k3": "rlinf_vlm.algorithms.kl:k3",
}
"""(logprobs [N], reference_logprobs [N]) -> estimate of the divergence per token [N]."""

AGGREGATIONS = {
    "token-mean": "rlinf_vlm.algorithms.aggregation:TOKEN_MEAN",
    "seq-mean-token-mean": "rlinf_vlm.algorithms.aggregation:SEQ_MEAN_TOKEN_MEAN",
    "seq-mean-token-sum-norm": "rlinf_vlm.algorithms.aggregation:SEQ_MEAN_TOKEN_SUM_NORM",
}
"""Aggregation: how tokens weigh and what a step's sum is divided by."""
