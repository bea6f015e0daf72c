"""Items as rows, in the clear or sealed: names, values and what filters may see of them.

In the clear a row has the item's names and its value as jsonb. Of a sealed item the labels of the namespace
and the key are sealed names (`keys.names`): look-ups, prefixes, suffixes and wildcards work as they do in the
clear. A key is bound to its namespace, so that labels of several cannot be put together to one that was never
stored. The value is sealed for its row. Beside it stand only the fields that `EncryptionConfig` lists.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langgraph.store.base import MatchCondition

from haive_persistence.config import EncryptionConfig
from haive_persistence.documents import namespaces
from haive_persistence.documents.filters import Condition, compile_filter
from haive_persistence.documents.namespaces import Namespace, Scope
from haive_persistence.documents.values import (
    Encoded,
    check,
    checked,
    comparable_json,
    decode,
    encode,
    from_json,
    to_json,
)
from haive_persistence.errors import InvalidInputError, PlaintextRefusedError, WrongKeyError
from haive_persistence.keys import NameSealer, Sealing

ItemId = tuple[str, str]

TABLE = "store_item"


class ItemCodec:
    """Items that are stored in the clear."""

    #: Whether a namespace that is listed needs a witness: an item's namespace and key, as they are stored.
    needs_witness = False

    def item_id(self, item: ItemId) -> ItemId:
        """Namespace text and key as they are stored."""
        return item

    def namespace(self, text: str, witness: ItemId | None = None) -> Namespace:
        """The namespace that is stored as `text`."""
        return namespaces.from_text(text)

    def names(self, item: ItemId) -> tuple[Namespace, str]:
        """The namespace and key that are stored as `item`."""
        return namespaces.from_text(item[0]), item[1]

    def scope(self, prefix: Sequence[str]) -> Scope:
        """The range that holds a namespace and all below it."""
        return namespaces.scope(prefix)

    def listed(self, conditions: Iterable[MatchCondition]) -> tuple[Scope, list[str]]:
        """The range and the patterns of namespaces that fulfil all conditions."""
        return namespaces.listed(conditions)

    def conditions(self, wanted: Any) -> list[Condition]:
        """A filter as conditions."""
        return compile_filter(wanted)

    def encode(self, item: ItemId, value: object) -> Encoded:
        """The columns for the value of the item that is stored as `item`."""
        return encode(value)

    def decode(self, item: ItemId, columns: Sequence[Any]) -> dict[str, Any]:
        """The value of the item that is stored as `item`, from the columns of its row."""
        value, exact_json, key_order, payload = columns
        if payload is not None:
            raise WrongKeyError(
                "this item is sealed and no key was given: set PersistenceConfig(encryption=…)"
            )
        return decode(value, exact_json, key_order)


class SealedItemCodec(ItemCodec):
    """Items that are sealed under a tenant's data keys."""

    needs_witness = True

    def __init__(self, sealing: Sealing, names: NameSealer, encryption: EncryptionConfig) -> None:
        self._sealing = sealing
        self._names = names
        self._encryption = encryption

    def item_id(self, item: ItemId) -> ItemId:
        text = self._text(namespaces.from_text(item[0]))
        sealed = text, self._names.seal("key", item[1], text)
        namespaces.check_size(*sealed, sealed=True)
        return sealed

    def _text(self, namespace: Iterable[str]) -> str:
        return namespaces.to_text(map(self._label, namespace))

    def _label(self, label: str) -> str:
        return self._names.seal("label", label)

    def namespace(self, text: str, witness: ItemId | None = None) -> Namespace:
        if witness is not None:
            self._names.open("key", witness[1], witness[0])
        return tuple(self._names.open("label", label) for label in namespaces.from_text(text))

    def names(self, item: ItemId) -> tuple[Namespace, str]:
        return self.namespace(item[0]), self._names.open("key", item[1], item[0])

    def scope(self, prefix: Sequence[str]) -> Scope:
        return namespaces.scope([self._label(label) for label in prefix])

    def listed(self, conditions: Iterable[MatchCondition]) -> tuple[Scope, list[str]]:
        return namespaces.listed(conditions, self._label)

    # --- filters

    def conditions(self, wanted: Any) -> list[Condition]:
        if not isinstance(wanted, Mapping) or not wanted:
            return compile_filter(wanted)
        check_sealed_filter(wanted, self._encryption)
        return compile_filter({name: self._blinded_test(name, test) for name, test in wanted.items()})

    def _blinded_test(self, field: str, test: Any) -> Any:
        if field in self._encryption.readable_fields:
            return test
        if isinstance(test, Mapping):
            return {operator: self._blind(field, operand) for operator, operand in test.items()}
        return self._blind(field, test)

    def _blind(self, field: str, value: Any) -> Any:
        """The hash of a scalar as it is stored; None stays None, which a missing field equals."""
        if value is None:
            return None
        digest = self._sealing.blind(f"{TABLE}.{field}", value)
        assert digest is not None
        return base64.b64encode(digest).decode()

    def _searchable(self, value: Mapping[str, Any]) -> dict[str, Any]:
        readable = {name: value[name] for name in self._encryption.readable_fields if name in value}
        return readable | {
            name: self._blind(name, value[name])
            for name in self._encryption.searchable_fields
            if name in value and _is_scalar(value[name])
        }

    # --- values

    def encode(self, item: ItemId, value: object) -> Encoded:
        plain = checked(value)
        check(plain, "value")
        payload = self._sealing.seal(TABLE, item, to_json(plain))
        return Encoded(comparable_json(self._searchable(plain)), payload=payload)

    def decode(self, item: ItemId, columns: Sequence[Any]) -> dict[str, Any]:
        payload = columns[3]
        if payload is None:
            raise PlaintextRefusedError(
                "a store item is not sealed, and the tenant has a key: if it is older than the key, call "
                "seal_existing(), or set accept_earlier_plaintext=True; if not, something else wrote it: "
                "delete it, or restore a backup"
            )
        return from_json(self._sealing.open(TABLE, item, payload))


def check_sealed_filter(wanted: Mapping[str, Any], encryption: EncryptionConfig) -> None:
    """Raise InvalidInputError for a filter that needs to see what is sealed."""
    for field, test in wanted.items():
        if field in encryption.readable_fields:
            continue
        if field not in encryption.searchable_fields:
            raise InvalidInputError(
                f"the field {field!r} is sealed: to filter by it, list it in EncryptionConfig, among "
                "searchable_fields (equality) or readable_fields (in the clear), and put older items again"
            )
        tests = test if isinstance(test, Mapping) else {"$eq": test}
        for operator, operand in tests.items():
            if operator not in ("$eq", "$ne") or not _is_scalar(operand):
                raise InvalidInputError(
                    f"the field {field!r} is sealed and searchable by $eq and $ne, with a text, a number, a "
                    "boolean or None: for other filters list it in EncryptionConfig(readable_fields=…)"
                )


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
