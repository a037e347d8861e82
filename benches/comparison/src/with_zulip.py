"""What a developer of Zulip writes, in outline: it is counted and doesn't run here.

The helpers are those of zerver/lib/cache.py; the names of models are shortened. Lines between `begin` and `end` are
counted.
"""

from hashlib import sha1

from django.db.models.signals import post_save

from zerver.lib.cache import bulk_cached_fetch, cache_delete_many, cache_with_key
from zerver.models import Message, UserProfile

# begin: set up
WEEK = 3600 * 24 * 7
# end


# begin: user by e-mail
def user_by_email_key(email: str, realm_id: int) -> str:
    digest = sha1(email.strip().encode()).hexdigest()
    return f"user_by_email:{realm_id}:{digest}"


@cache_with_key(user_by_email_key, timeout=WEEK)
def user_by_email(email: str, realm_id: int) -> UserProfile:
    return UserProfile.objects.get(email=email.strip(), realm_id=realm_id)


# end


# begin: a new e-mail
def flush_user(*, instance: UserProfile, update_fields=None, **kwargs) -> None:
    keys = [user_by_email_key(instance.email, instance.realm_id)]
    if update_fields is None or "is_active" in update_fields:
        keys.append(active_user_ids_key(instance.realm_id))
    cache_delete_many(keys)


post_save.connect(flush_user, sender=UserProfile)


def change_email(user: UserProfile, email: str) -> None:
    cache_delete_many([user_by_email_key(user.email, user.realm_id)])
    user.email = email
    user.save(update_fields=["email"])


# end


# begin: message page
def message_key(message_id: int) -> str:
    return f"message:{message_id}"


def messages(ids: list[int]) -> dict[int, Message]:
    return bulk_cached_fetch(
        cache_key_function=message_key,
        query_function=lambda missing: Message.objects.filter(id__in=missing),
        object_ids=ids,
        id_fetcher=lambda message: message.id,
    )


# end


# begin: active users
def active_user_ids_key(realm_id: int) -> str:
    return f"active_user_ids:{realm_id}"


@cache_with_key(active_user_ids_key, timeout=WEEK)
def active_user_ids(realm_id: int) -> list[int]:
    users = UserProfile.objects.filter(realm_id=realm_id, is_active=True)
    return list(users.values_list("id", flat=True))


# end


# begin: a deactivation
def deactivate(user: UserProfile) -> None:
    user.is_active = False
    user.save(update_fields=["is_active"])


# end
