"""Beam search and the token rules again: plain Python lists, float64, no cache and no padding."""

import dataclasses
from collections.abc import Callable

import numpy as np

from roberta_jax.modeling.beam_search import Beams
from roberta_jax.modeling.next_token import NO_RULES, TokenRules


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for continuations of one prompt.

    `logits_of` maps a list of equally long token lists to the [len, V] logits of the next token.
    """

    logits_of: Callable[[list[list[int]]], np.ndarray]
    rules: TokenRules = NO_RULES
    ends: frozenset[int] = frozenset()
    min_new_tokens: int = 0

    def greedy(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        ids = list(prompt)
        for step in range(max_new_tokens):
            scores = self.adjusted(np.asarray(self.logits_of([ids])[0], np.float64), ids, step)
            ids = [*ids, int(scores.argmax())]
            if ids[-1] in self.ends:
                break
        return ids

    def beams(self, prompt: list[int], max_new_tokens: int, beams: Beams):
        """The finished continuations, the best first: [(score, ids)]."""
        live, finished = [(0.0, list(prompt))], []
        for step in range(max_new_tokens):
            is_last = step == max_new_tokens - 1
            candidates = []
            all_logits = self.logits_of([ids for _, ids in live])
            for (score, ids), logits in zip(live, all_logits, strict=True):
                logits = np.asarray(logits, np.float64)
                log_probs = logits - logits.max()
                log_probs = log_probs - np.log(np.exp(log_probs).sum())
                for token, log_prob in enumerate(self.adjusted(log_probs, ids, step)):
                    if log_prob > -np.inf:
                        candidates.append((score + log_prob, [*ids, token]))
            candidates.sort(key=lambda candidate: -candidate[0])
            candidates = candidates[: (1 + len(self.ends)) * beams.num_beams]
            for score, ids in candidates[: beams.num_beams]:
                if is_last or ids[-1] in self.ends:
                    finished.append((score / (step + 1) ** beams.length_penalty, ids))
            finished = sorted(finished, key=lambda item: -item[0])[: beams.num_beams]
            live = [item for item in candidates if item[1][-1] not in self.ends][: beams.num_beams]
            if not live:
                break
            if len(finished) == beams.num_beams:
                takes_longest = beams.early_stopping == "never" and beams.length_penalty > 0
                best_length = max_new_tokens if takes_longest else step + 1
                best = live[0][0] / best_length**beams.length_penalty
                if beams.early_stopping is True or best <= finished[-1][0]:
                    break
        return finished[: beams.num_return_sequences]

    def adjusted(self, scores: np.ndarray, ids: list[int], step: int) -> np.ndarray:
        """The scores of the token after `ids` by the rules, -inf if it is excluded."""
        rules, scores = self.rules, scores.copy()
        for token, forced in ((t, s == step) for s, t in rules.forced_tokens):
            if forced:
                return np.where(np.arange(len(scores)) == token, 0.0, -np.inf)
        for token in set(ids):
            penalty = rules.repetition_penalty
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
        size = rules.no_repeat_ngram_size
        ngrams = {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)} if size else set()
        for token in range(len(scores)):
            grown = [*ids, token]
            excluded = [
                tuple(grown[len(grown) - size :]) in ngrams,
                any(tuple(grown[-len(word) :]) == word for word in rules.bad_words_ids),
                token in rules.suppress_tokens,
                token in rules.begin_suppress_tokens and step == rules.begin_step,
                token in self.ends and step < self.min_new_tokens,
            ]
            if any(excluded):
                scores[token] = -np.inf
        return scores
