//! Who may ask: users with passwords, of which the file has bcrypt hashes, and bearer tokens.
//!
//! bcrypt takes tens of milliseconds on purpose. So one password at a time is checked, on a thread that serves nothing
//! else; what was right is known from then on by a keyed hash, and waits for nobody. The others wait for each other, and
//! where too many wait who comes is turned away.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bcrypt::HashParts;
use ring::{
    digest,
    hmac::{HMAC_SHA256, Key, sign},
    rand::SystemRandom,
};
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

use crate::lock::lock;

/// Passwords that wait to be checked.
const WAITING: usize = 32;

/// How long a password may wait.
const PATIENCE: Duration = Duration::from_secs(8);

/// A password is checked against this hash where its user is none, so that the time tells nobody who is one.
const NOBODY: &str = "$2b$10$1FofCYxvKM5ma0LJRFIuEuG6ptgIDHeyM0mrJdKK0hqmhwwTJqgXi";

/// A keyed hash of credentials: two are compared without a word of them.
type Tag = [u8; 32];

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Verdict {
    /// It may be answered.
    Right,
    /// It has no credentials, or wrong ones.
    Wrong,
    /// Too many others wait for a check.
    Busy,
}

/// The credentials that are right.
#[derive(Default)]
pub(super) struct Credentials {
    /// Hashes by users.
    users: BTreeMap<String, Arc<str>>,
    /// SHA-256 of tokens.
    tokens: HashSet<Tag>,
}

impl Credentials {
    /// Checks that the hashes of the users are some.
    pub(super) fn new(users: BTreeMap<String, String>, tokens: &[String]) -> Result<Self> {
        for (user, hash) in &users {
            // What stands there instead may be the password.
            ensure!(
                hash.parse::<HashParts>().is_ok(),
                "basic_auth_users: what {user:?} has is no bcrypt hash: `htpasswd -nBC 10 '' | tr -d ':\\n'` makes one"
            );
        }
        let users = users.into_iter().map(|(user, hash)| (user, hash.into())).collect();
        Ok(Self { users, tokens: tokens.iter().map(|token| fingerprint(token.as_bytes())).collect() })
    }

    /// Whether anybody may ask.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.tokens.is_empty()
    }

    /// What is asked for.
    pub(super) fn challenge(&self) -> &'static str {
        if self.users.is_empty() { "Bearer" } else { "Basic" }
    }
}

fn fingerprint(bytes: &[u8]) -> Tag {
    let mut tag = Tag::default();
    tag.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    tag
}

/// A password that waits to be checked.
struct Check {
    hash: Arc<str>,
    password: Vec<u8>,
    answer: oneshot::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Check>,
    /// Somebody works on it.
    busy: bool,
}

/// The passwords that are being checked, and those that were right.
pub(super) struct Checks {
    key: Key,
    queue: Mutex<Queue>,
    /// Of user, hash and password: no more than there are users.
    right: Mutex<BTreeMap<String, Tag>>,
}

impl Checks {
    pub(super) fn new() -> Result<Self> {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| io::Error::other("no random numbers")).context("no key for credentials")?;
        Ok(Self { key, queue: Mutex::default(), right: Mutex::default() })
    }

    /// Forgets users who are gone or have another password.
    pub(super) fn keep(&self, credentials: &Credentials) {
        lock(&self.right).retain(|user, _| credentials.users.contains_key(user));
    }

    /// Whether a request with this `Authorization` may be answered.
    pub(super) async fn verdict(
        checks: &Arc<Self>,
        credentials: &Credentials,
        authorization: Option<&[u8]>,
    ) -> Verdict {
        if credentials.is_empty() {
            return Verdict::Right;
        }
        let Some((scheme, value)) = authorization.and_then(split) else { return Verdict::Wrong };
        if scheme.eq_ignore_ascii_case(b"bearer") {
            // The time that it takes tells of a hash, not of a token.
            let right = credentials.tokens.contains(&fingerprint(value));
            return if right { Verdict::Right } else { Verdict::Wrong };
        }
        if !scheme.eq_ignore_ascii_case(b"basic") || credentials.users.is_empty() {
            return Verdict::Wrong;
        }
        let Ok(decoded) = STANDARD.decode(value) else { return Verdict::Wrong };
        let Some(colon) = memchr::memchr(b':', &decoded) else { return Verdict::Wrong };
        let (user, password) = (String::from_utf8_lossy(&decoded[..colon]), &decoded[colon + 1..]);
        let known = credentials.users.get(user.as_ref());
        let hash = known.cloned().unwrap_or_else(|| NOBODY.into());
        let tag = checks.tag(&user, &hash, password);
        if lock(&checks.right).get(user.as_ref()) == Some(&tag) {
            return Verdict::Right;
        }
        match checks.check(hash, password.to_vec()).await {
            Some(true) if known.is_some() => {
                lock(&checks.right).insert(user.into_owned(), tag);
                Verdict::Right
            }
            Some(_) => Verdict::Wrong,
            None => Verdict::Busy,
        }
    }

    fn tag(&self, user: &str, hash: &str, password: &[u8]) -> Tag {
        // The lengths keep apart what stands beside each other; a hash has always the same.
        let mut all = (user.len() as u64).to_le_bytes().to_vec();
        [user.as_bytes(), hash.as_bytes(), password].iter().for_each(|part| all.extend_from_slice(part));
        let mut tag = Tag::default();
        tag.copy_from_slice(sign(&self.key, &all).as_ref());
        tag
    }

    /// Whether a password is that of the hash; `None` when it was turned away.
    async fn check(self: &Arc<Self>, hash: Arc<str>, password: Vec<u8>) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        let idle = {
            let mut queue = lock(&self.queue);
            // Who has gone meanwhile takes no place.
            queue.waiting.retain(|check| !check.answer.is_closed());
            if queue.waiting.len() >= WAITING {
                return None;
            }
            queue.waiting.push_back(Check { hash, password, answer });
            !std::mem::replace(&mut queue.busy, true)
        };
        if idle {
            let checks = self.clone();
            spawn_blocking(move || checks.work());
        }
        timeout(PATIENCE, answered).await.ok()?.ok()
    }

    /// Checks until nobody waits.
    fn work(&self) {
        loop {
            let next = {
                let mut queue = lock(&self.queue);
                let next = queue.waiting.pop_front();
                queue.busy = next.is_some();
                next
            };
            let Some(check) = next else { return };
            if check.answer.is_closed() {
                continue;
            }
            let right = bcrypt::verify(&check.password, &check.hash).unwrap_or(false);
            // Whoever asked may have gone meanwhile.
            let _ = check.answer.send(right);
        }
    }
}

/// A scheme, and what follows it.
fn split(authorization: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', authorization)?;
    Some((&authorization[..space], authorization[space..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the lowest cost that there is.
    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn credentials() -> Credentials {
        let users = [("ada", hash("right")), ("bob", hash("pass:word"))];
        let users = users.map(|(user, hash)| (user.to_owned(), hash));
        Credentials::new(users.into(), &["0123456789abcdef".to_owned()]).unwrap()
    }

    fn basic(text: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(text)).into_bytes()
    }

    #[tokio::test]
    async fn what_is_right_and_what_is_not() {
        let (checks, credentials) = (Arc::new(Checks::new().unwrap()), credentials());
        for round in 0..2 {
            for (authorization, verdict) in [
                (basic("ada:right"), Verdict::Right),
                (basic("bob:pass:word"), Verdict::Right),
                (b"bAsIc  YWRhOnJpZ2h0".to_vec(), Verdict::Right),
                (b"Bearer 0123456789abcdef".to_vec(), Verdict::Right),
                (basic("ada:wrong"), Verdict::Wrong),
                (basic("ada:"), Verdict::Wrong),
                (basic("bob:right"), Verdict::Wrong),
                (basic("eve:right"), Verdict::Wrong),
                (basic("ada"), Verdict::Wrong),
                (b"Basic ???".to_vec(), Verdict::Wrong),
                (b"Basic".to_vec(), Verdict::Wrong),
                (b"Bearer 0123456789abcdeg".to_vec(), Verdict::Wrong),
                (b"Bearer ".to_vec(), Verdict::Wrong),
                (b"\xff\xfe".to_vec(), Verdict::Wrong),
            ] {
                let said = Checks::verdict(&checks, &credentials, Some(&authorization)).await;
                assert_eq!(said, verdict, "{:?}, round {round}", String::from_utf8_lossy(&authorization));
            }
        }
        assert_eq!(Checks::verdict(&checks, &credentials, None).await, Verdict::Wrong);
        assert_eq!(Checks::verdict(&checks, &Credentials::default(), None).await, Verdict::Right);
    }

    #[tokio::test]
    async fn nobody_is_a_hash_and_no_user() {
        assert!(NOBODY.parse::<HashParts>().is_ok());
        let (checks, credentials) = (Arc::new(Checks::new().unwrap()), credentials());
        let said = Checks::verdict(&checks, &credentials, Some(&basic("eve:fakepassword"))).await;
        assert_eq!(said, Verdict::Wrong);
        assert!(lock(&checks.right).is_empty());
    }

    #[tokio::test]
    async fn another_password_ends_the_old_one() {
        let (checks, old) = (Arc::new(Checks::new().unwrap()), credentials());
        let ada = basic("ada:right");
        assert_eq!(Checks::verdict(&checks, &old, Some(&ada)).await, Verdict::Right);
        let new = Credentials::new([("ada".to_owned(), hash("new"))].into(), &[]).unwrap();
        checks.keep(&new);
        assert_eq!(Checks::verdict(&checks, &new, Some(&ada)).await, Verdict::Wrong);
        assert_eq!(Checks::verdict(&checks, &new, Some(&basic("ada:new"))).await, Verdict::Right);
    }

    #[tokio::test]
    async fn who_comes_when_too_many_wait_is_turned_away() {
        let checks = Arc::new(Checks::new().unwrap());
        // Nobody works yet.
        lock(&checks.queue).busy = true;
        let hash: Arc<str> = hash("right").into();
        let ask = |password: &'static str| {
            let (checks, hash) = (checks.clone(), hash.clone());
            tokio::spawn(async move { checks.check(hash, password.into()).await })
        };
        let mut waiting: Vec<_> = (0..WAITING).map(|_| ask("wrong")).collect();
        tokio::task::yield_now().await;
        assert_eq!(ask("right").await.unwrap(), None);
        // One of them goes.
        let gone = waiting.remove(0);
        gone.abort();
        assert!(gone.await.is_err());
        let late = ask("right");
        tokio::task::yield_now().await;
        let worker = checks.clone();
        let worked = spawn_blocking(move || worker.work());
        assert_eq!(late.await.unwrap(), Some(true));
        for one in waiting {
            assert_eq!(one.await.unwrap(), Some(false));
        }
        worked.await.unwrap();
        assert!(!lock(&checks.queue).busy);
    }
}
