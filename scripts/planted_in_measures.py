"""Errors planted in classifiers' unlearning and in evaluation; the form is that of `planted_errors.py`."""

from __future__ import annotations

_ALIGNMENT = "evaluation/test_alignment.py"
_FIDELITY = "evaluation/test_fidelity.py"
_FORMULAS = "classification/test_formulas.py"
_INCEPTION = "evaluation/test_inception.py"
_MEASURES = "classification/test_measures.py"
_METHODS = "classification/test_methods.py"
_NUDITY = "evaluation/test_nudity.py"
_OBJECTS = "evaluation/test_objects.py"
_PARITY = "classification/test_parity.py"
_RECIPES = "classification/test_recipes.py"

TABLE: dict[str, dict[str, list[tuple[str, str]]]] = {
    "classification/labels.py": {_MEASURES: [("(other >= labels)", "(other > labels)")]},
    "classification/masks.py": {_MEASURES: [("return total / len(forget)", "return total / len(batch.labels)")]},
    "classification/batches.py": {
        _FORMULAS: [("pixels.flip(-1)", "pixels.flip(-2)"), ("randint(2 * self.shift + 1,", "randint(self.shift + 1,")],
        _METHODS: [("(part + 1) * count // parts -", "(part + 2) * count // parts -")],
    },
    "classification/training.py": {
        _RECIPES: [
            ("epoch >= int(milestone)", "epoch > int(milestone)"),
            ("0.5 * (1 + math.cos(", "0.5 * (1 - math.cos("),
        ],
        _METHODS: [
            ("predict(task.classifier, task.split.forget.pixels)", "task.classifier.eval()"),
            ('torch.manual_seed(stream_seed(task.seed, "network"))', "pass"),
            ('if len(batch.labels) > 1 else "freeze"', 'if len(batch.labels) > 0 else "freeze"'),
        ],
        _FORMULAS: [("leaf.add_(leaf.grad)", "leaf.sub_(leaf.grad)")],
    },
    "classification/forget_split.py": {
        "classification/test_data.py": [
            ("data[(data.labels != number)", "data[(data.labels == number)"),
            ("order[: int(ratio * total)]", "order[int(ratio * total) :]"),
        ]
    },
    "classification/methods/gradient_ascent.py": {
        _FORMULAS: [("lambda batch: -descent(batch)", "lambda batch: descent(batch)")]
    },
    "classification/methods/random_label.py": {
        _FORMULAS: [
            ("total = total + F.cross_entropy(", "total = total - F.cross_entropy("),
            ("total + self.retain_weight * retain", "total + retain"),
            ("total + self.retain_weight * retain", "total - self.retain_weight * retain"),
            ("self.frozen_share, step, steps", "self.frozen_share, step - 1, steps"),
        ]
    },
    "classification/methods/finetune.py": {
        _PARITY: [
            ("(1 - epoch / epochs)", "(epoch / epochs)"),
            ("self.weight(done // steps)", "self.weight(done)"),
            ("classification(batch) + weight", "classification(batch) - weight"),
        ]
    },
    "classification/methods/scrub.py": {
        _FORMULAS: [
            ("return -divergence", "return divergence"),
            ("F.kl_div(F.log_softmax(student / t, 1), target,", "F.kl_div(target, F.log_softmax(student / t, 1),"),
            ("log_target=True) * t * t", "log_target=True) * t"),
            ("self.retain_weight * F.cross_entropy", "F.cross_entropy"),
            ("epoch < self.ascent_epochs", "epoch <= self.ascent_epochs"),
        ]
    },
    "classification/methods/dampening.py": {
        _FORMULAS: [
            ("ratio.clamp_max(1.0)", "ratio"),
            ("of_forget[name] > self.selection", "of_forget[name] < self.selection"),
            ("self.dampening * of_all[name]", "of_all[name]"),
            ("/ math.sqrt(batches)", "/ batches"),
        ]
    },
    "classification/methods/l2ul.py": {
        _FORMULAS: [
            ("total = total + self.holding", "total = total - self.holding"),
            ('of_forget if self.goal == "relabel"', 'of_forget if self.goal != "relabel"'),
            ("share * total + (1 - share) * kept", "(1 - share) * total + share * kept"),
            ("else total + kept", "else total - kept"),
        ],
        _METHODS: [("else not right.any()", "else right.any()")],
    },
    "classification/methods/influence_unlearning.py": {_FORMULAS: [("self.step * k", "-self.step * k")]},
    "classification/methods/boundary.py": {
        _FORMULAS: [("batch.labels[:, None], -torch.inf)", "batch.labels[:, None], torch.inf)")],
        _PARITY: [("torch.full_like(batch.labels, classes)", "torch.full_like(batch.labels, classes - 1)")],
    },
    "classification/influence.py": {
        _FORMULAS: [
            ("of_forget / total - of_retain", "of_forget / total + of_retain"),
            ("smaller / size * direction", "size / smaller * direction"),
        ],
        _MEASURES: [("/ len(retain) + damping", "/ len(retain) - damping")],
        _PARITY: [("(k @ g) / (samples + t)", "(k @ g) / (samples - t)")],
    },
    "classification/attacks.py": {
        _FORMULAS: [
            ("changed - step_size * gradient", "changed + step_size * gradient"),
            ("clamp_min(1e-12)).clamp_max(1.0)", "clamp_min(1e-12)).clamp_min(1.0)"),
            ("+ step_size * gradient.sign()", "- step_size * gradient.sign()"),
            ("generator=generator).to(pixels.device) * radius", "generator=generator).to(pixels.device)"),
        ]
    },
    "classification/importance.py": {
        _FORMULAS: [
            ('accumulate="absolute"', 'accumulate="signed"'),
            ("1 - (scores - low) / spread", "(scores - low) / spread"),
        ],
        _MEASURES: [("return 0.5 *", "return 1.0 *")],
    },
    "classification/membership.py": {
        _MEASURES: [
            ("== 0).mean()", "== 1).mean()"),
            (".log1p()", ""),
            ("max(2, size // 5)", "max(2, size)"),
        ],
        _PARITY: [("retain[: len(test)]", "retain[-len(test) :]")],
        _FORMULAS: [("softmax(1).gather", "sigmoid().gather")],
    },
    "classification/metrics.py": {
        _MEASURES: [
            ("sum(abs(value - goal)", "sum((value - goal)"),
            ("return 1 - self.forget_accuracy", "return self.forget_accuracy"),
        ]
    },
    "evaluation/small_picture_networks.py": {
        _FORMULAS: [("kernel_size=3, stride=1,", "kernel_size=3, stride=2,"), (".mean((2, 3))", ".amax((2, 3))")]
    },
    "evaluation/inception.py": {
        _INCEPTION: [
            ("count_include_pad=False", "count_include_pad=True"),
            ("if self._largest else _average(x)", "if not self._largest else _average(x)"),
            ("- 128) / 128", "- 127.5) / 127.5"),
            ("eps=0.001", "eps=1e-5"),
            ("dtype=images.dtype) * (old / size)", "dtype=images.dtype) * ((old - 1) / (size - 1))"),
        ]
    },
    "evaluation/fidelity.py": {
        _FIDELITY: [
            ("kthvalue(neighbours + 1,", "kthvalue(neighbours,"),
            ("min(1000, n // 2, m // 2)", "min(1000, n, m)"),
            ("<= radii)", "< radii)"),
            ("std()) if bootstraps > 1", "std()) if bootstraps > 99"),
        ]
    },
    "evaluation/alignment.py": {
        _ALIGNMENT: [
            ("float(1 - value)", "float(value)"),
            (".mean() / 255)", ".mean())"),
            ("[100 * max(", "[250 * max("),
            ("side = min(picture.size)", "side = max(picture.size)"),
        ]
    },
    "evaluation/label_rates.py": {
        _NUDITY: [("bool(found & wanted)", "bool(found - wanted)")],
        _OBJECTS: [("[label in found for", "[label not in found for")],
    },
    "evaluation/protocols.py": {
        _NUDITY: [
            ("if self.strict else score", "if not self.strict else score"),
            ("part in self.classes and enough", "enough"),
        ]
    },
    "evaluation/nudity.py": {_NUDITY: [("prompts.get(key, frozenset()) | seen", "seen")]},
    "evaluation/objects.py": {
        _OBJECTS: [
            ("frozenset(shown) - {name}", "frozenset(shown)"),
            ('"" if wanted in forget else wanted', '"" if wanted not in forget else wanted'),
        ]
    },
}
"""File → test files → pairs of right and wrong."""
