//! What each entity makes stale, as all data sets together declare it: a change of it is to be looked at.

use larder_chat::data::{Message, Reaction, Stream, Subscription, User};

#[track_caller]
fn check<T: larder::Entity>(expected: &str) {
    assert_eq!(larder::plan::<T>().to_string(), expected);
}

#[test]
fn plans_are_these() {
    check::<User>(
        "display_name on user: full_name, version; created, deleted; the key of its id\n\
         subscriptions on user: no field; created, deleted; the key of its id\n\
         user on user: any field; created, deleted; the key of its id\n\
         user_by_email on user: email; created, deleted; keys of both images\n",
    );
    check::<Stream>(
        "stream on stream: any field; created, deleted; the key of its id\n\
         subscribers on stream: no field; created, deleted; the key of its id\n\
         subscriptions on stream: any field; created, deleted; keys of the query `readers_of`, after the commit\n",
    );
    check::<Subscription>(
        "subscribers on subscription: any field; created, deleted; keys of both images\n\
         subscriptions on subscription: any field; created, deleted; keys of both images\n",
    );
    check::<Message>("message on message: any field; created, deleted; the key of its id\n");
    check::<Reaction>("message on reaction: any field; created, deleted; keys of both images\n");
}
