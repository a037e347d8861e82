//! The flush audit finds every bug that was put into a service, each by name, and passes the correct one.

mod desk;

use std::fmt::Write as _;
use std::pin::Pin;

use larder_testing::{Finding, TestCache, TestCacheBuilder, assert_flushes_complete};

use crate::stores::on_each;
use desk::{
    App, Bug, Desk, Greeting, NamesIn, Team, TeamField, TitleOf, User, UserByEmail, UserById,
    UserField,
};

/// Audits both entities of a service with this bug.
async fn findings<const B: Bug>() -> Vec<Finding> {
    let desk = Desk::new();
    findings_on::<B>(desk.clone(), TestCache::builder(desk)).await
}

async fn findings_on<const B: Bug>(desk: Desk, builder: TestCacheBuilder<Desk>) -> Vec<Finding> {
    let cache = builder
        .register::<UserById<B>>()
        .register::<UserByEmail<B>>()
        .register::<NamesIn<B>>()
        .register::<TitleOf<B>>()
        .register::<Greeting<B>>()
        .unchecked_hits()
        .build()
        .await;
    desk.know(cache.handle());
    let app = App::<B> {
        desk,
        cache: cache.handle(),
    };
    let audit = assert_flushes_complete::<User>(&cache)
        .reads(async || app.read().await)
        .field(UserField::Name, async || {
            app.update(|user| user.name = "Augusta".to_owned()).await;
        })
        .field(UserField::Team, async || {
            app.update(|user| user.team = 2).await
        });
    let audit = match B {
        desk::FIELD_WITHOUT_WRITER => audit,
        _ => audit.field(UserField::Email, async || {
            app.update(|user| user.email = "countess@desk".to_owned())
                .await;
        }),
    };
    let grace = User {
        id: 8,
        email: "grace@desk".to_owned(),
        name: "Grace".to_owned(),
        team: 1,
    };
    let mut findings = audit
        .create(async || app.create(grace.clone()).await)
        .delete(async || app.delete(8).await)
        .findings()
        .await;
    let teams = assert_flushes_complete::<Team>(&cache)
        .reads(async || app.read().await)
        .field(TeamField::Title, async || app.retitle(2, "cards").await)
        .never_created()
        .never_deleted();
    findings.extend(teams.findings().await);
    findings
}

type Audit = fn() -> Pin<Box<dyn Future<Output = Vec<Finding>>>>;

macro_rules! bugs {
    ($($bug:ident = $name:literal: $said:literal;)*) => {
        /// The bugs, what they are called, their audits, and how the first finding begins that names them.
        const BUGS: &[(&str, Audit, &str)] = &[
            $(($name, || Box::pin(findings::<{ desk::$bug }>()), $said),)*
        ];
    };
}

bugs! {
    FIELD_NOT_WATCHED = "a field is missing from a watch list":
        "user, name: `user_by_email` is stale at user_by_email:ada@desk";
    OLD_KEY_NOT_FLUSHED = "the old key isn't flushed":
        "user, email: `user_by_email` is stale at user_by_email:ada@desk";
    NEW_KEY_NOT_FLUSHED = "the new key isn't flushed":
        "user, email: `user_by_email` is stale at user_by_email:countess@desk";
    CREATION_NOT_WATCHED = "creation isn't watched":
        "user, creation: `names_in` is stale at names_in:1";
    DELETION_NOT_FLUSHED = "deletion isn't flushed":
        "user, deletion: `user_by_id` is stale at user_by_id:8";
    WRONG_ID = "another row's images are given":
        "user, name: `user_by_id` is stale at user_by_id:7";
    WRONG_ENTITY = "another entity is watched":
        "user, name: `user_by_id` is stale at user_by_id:7";
    FLUSH_BEFORE_COMMIT = "flushed before the commit":
        "user, name: the flush of `user_by_id` went out before the commit";
    FLUSH_WITHOUT_COMMIT = "flushed, and rolled back":
        "user, name: it flushed, and nothing that was read is another than before";
    CHANGED_MISSING = "`unchanged` is said of a change":
        "user, name: `user_by_id` is stale at user_by_id:7";
    SAME_IMAGE_TWICE = "the image after is given twice":
        "user, name: `user_by_id` is stale at user_by_id:7";
    QUERY_MISSING = "what only a query finds isn't planned":
        "team, title: `title_of` is stale at title_of:7";
    DERIVED_NOT_FLUSHED = "what is derived doesn't watch what its base shows":
        "user, name: `greeting` is stale at greeting:7";
    KEY_NORMALISED_ELSEWHERE = "the plan normalises a key that readers don't":
        "user, name: `user_by_email` doesn't cache user_by_email:ada@desk";
    BY_HAND_AND_NOBODY_DOES = "by hand, and nobody does":
        "user, name: `names_in` is stale at names_in:1";
    PAST_THE_GUARD = "a statement past the guard":
        "user, name: `user_by_id` is stale at user_by_id:7";
    SAVEPOINT_UNDONE = "a savepoint is undone, and its error swallowed":
        "user, name: it flushed, and nothing that was read is another than before";
    ROWS_WITHOUT_IMAGES = "rows are changed without images":
        "user, name: the writer failed: ";
    TTL_ONLY_WHERE_IT_MATTERS = "nobody flushes what isn't right when it is old":
        "user, name: `greeting` is stale at greeting:7";
    WRONG_KEY = "the plan has another key than readers":
        "user, name: `names_in` is stale at names_in:1";
    NOTHING_SAID = "a transaction writes, and says nothing":
        "user, name: the writer failed: ";
    QUERY_FINDS_TOO_FEW = "a query finds too few keys":
        "team, title: `title_of` is stale at title_of:7";
    FIELD_WITHOUT_WRITER = "the audit has no writer of a field":
        "user, email: nothing writes it";
    NEVER_READ = "the audit reads nothing of a data set":
        "user: nothing reads `greeting`";
}

#[tokio::test]
async fn every_seeded_bug_is_found_by_name() {
    let mut table = String::from("| Bug | What the audit says first |\n| --- | --- |\n");
    for (name, audit, said) in BUGS {
        let findings: Vec<String> = audit().await.iter().map(ToString::to_string).collect();
        let found = findings.iter().find(|finding| finding.starts_with(said));
        let found = found.unwrap_or_else(|| panic!("{name}: {findings:#?}"));
        let first = found.lines().next().unwrap_or_default();
        // A place in a file is another one after the next change of it.
        let first = match first.split_once(" begun at ") {
            Some((before, after)) => format!("{before} {}", after.split_once(' ').unwrap().1),
            None => first.to_owned(),
        };
        writeln!(table, "| {name} | {first} |").unwrap();
    }
    println!("{table}");
    let page = include_str!("../../../../docs/testing.md");
    assert!(
        page.contains(&table),
        "docs/testing.md has another table than\n\n{table}"
    );
}

#[tokio::test]
async fn a_correct_service_passes() {
    let findings = findings::<{ desk::NONE }>().await;
    assert!(findings.is_empty(), "{findings:#?}");
}

#[tokio::test]
async fn stores_make_no_difference() {
    let desks = std::cell::RefCell::new(Vec::new());
    let desk = || {
        desks.borrow_mut().push(Desk::new());
        desks.borrow().last().unwrap().clone()
    };
    on_each(&desk, async |builder| {
        let desk = desks.borrow().last().unwrap().clone();
        let findings = findings_on::<{ desk::NONE }>(desk, builder).await;
        assert!(findings.is_empty(), "{findings:#?}");
    })
    .await;
    on_each(&desk, async |builder| {
        let desk = desks.borrow().last().unwrap().clone();
        let findings = findings_on::<{ desk::FLUSH_BEFORE_COMMIT }>(desk, builder).await;
        assert!(!findings.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_finding_says_what_differs_and_what_the_plan_has() {
    let findings = findings::<{ desk::FIELD_NOT_WATCHED }>().await;
    let [finding] = &findings[..] else {
        panic!("one is wrong: {findings:#?}");
    };
    assert_eq!(
        finding.to_string(),
        "\
user, name: `user_by_email` is stale at user_by_email:ada@desk
  name: cached \"Ada\", true \"Augusta\"
  the plan: user_by_email on user: email, team; created, deleted; keys of both images
"
    );
}

#[tokio::test]
async fn an_audit_that_read_nothing_says_so() {
    // Nothing is registered, so that the plan has nothing that would have to be read.
    let cache = TestCache::new(Desk::new()).await;
    let audit = assert_flushes_complete::<Team>(&cache)
        .field(TeamField::Title, async || {})
        .never_created()
        .never_deleted();
    let findings = audit.findings().await;
    let [finding] = &findings[..] else {
        panic!("one is wrong: {findings:#?}");
    };
    let told = finding.to_string();
    assert!(told.starts_with("team: nothing was read"), "{told}");
}

#[tokio::test]
#[should_panic(
    expected = "the flushes of `user` aren't complete:\n\nuser, email: nothing writes it"
)]
async fn an_audit_that_finds_something_fails_its_test() {
    let desk = Desk::new();
    let cache = TestCache::builder(desk)
        .register::<UserById<0>>()
        .build()
        .await;
    assert_flushes_complete::<User>(&cache).run().await;
}
