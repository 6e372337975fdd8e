"""A broker that asks its access control lists, and permissions that are taken away there."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka.harness import admin

GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
"""Settings of such a broker; what has no list is allowed."""


def deny(address: str, operation: AclOperation, kind: ResourceType, name: str) -> Callable[[], None]:
    """Takes one permission away and leaves the others; the result gives it back."""
    client = admin(address)
    who = (kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    lists = [
        AclBinding(*who, AclOperation.ALL, AclPermissionType.ALLOW),
        AclBinding(*who, operation, AclPermissionType.DENY),
    ]
    for made in client.create_acls(lists).values():
        made.result(30)

    def give_back() -> None:
        (removed,) = client.delete_acls([AclBindingFilter(*who, operation, AclPermissionType.DENY)]).values()
        removed.result(30)

    return give_back


def allow_only(
    address: str,
    kind: ResourceType,
    name: str,
    *operations: AclOperation,
    pattern: ResourcePatternType = ResourcePatternType.LITERAL,
) -> Callable[[], None]:
    """Takes every other permission on it away; the result gives them back."""
    client = admin(address)
    lists = [
        AclBinding(kind, name, pattern, "User:ANONYMOUS", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
    for future in client.create_acls(lists).values():
        future.result(10)

    def give_back() -> None:
        anything = AclBindingFilter(kind, name, pattern, None, None, AclOperation.ANY, AclPermissionType.ANY)
        client.delete_acls([anything])[anything].result(10)

    return give_back
