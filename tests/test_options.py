"""The keywords that an IDE shows are the fields of the settings that they change."""

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from lightly_distill.evaluation.plan import TransferConfig, TransferOptions
from lightly_distill.synthetic.address import PublishKeywords, PublishOptions
from lightly_distill.synthetic.pretrain import PretrainConfig, PretrainOptions


@pytest.mark.parametrize(
    ("config", "keywords"),
    [(PretrainConfig, PretrainOptions), (TransferConfig, TransferOptions), (PublishOptions, PublishKeywords)],
)
def test_the_keywords_of_a_function_are_the_fields_of_its_settings(config: Any, keywords: Any) -> None:
    hints = get_type_hints(config)
    assert get_type_hints(keywords) == {field.name: hints[field.name] for field in fields(config)}
    assert not keywords.__required_keys__
