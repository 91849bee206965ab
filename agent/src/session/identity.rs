//! Who asked: the name under which a request is counted. In: what its head, body and connection say. Out: a name.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::payload::{body::Body, head::Head};

/// The name of those of whom nothing is known, and of work that belongs to no request that was seen.
pub const NONE: &str = "none";
/// The name of all who are not among the users told apart.
pub const OTHER: &str = "other";

/// What stands before the name of a client that would hide behind one of these.
const SELF_NAMED: char = '~';

/// A name that a client gave itself. One that reads as [`NONE`] or [`OTHER`], in whatever case and with whatever between
/// its letters, gets a mark: the rows of these names must hold nothing that somebody is to pay for.
fn self_named(name: String) -> String {
    let letters: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if [NONE, OTHER].contains(&&*letters) { format!("{SELF_NAMED}{name}") } else { name }
}

/// Where a name may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The configured header.
    Header,
    /// `user` in the request's body.
    Body,
    /// The keyed hash of the API key.
    Key,
    /// The client's address.
    Address,
}

impl FromStr for Source {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "header" => Ok(Self::Header),
            "body" => Ok(Self::Body),
            "key" => Ok(Self::Key),
            "address" => Ok(Self::Address),
            _ => Err("there are header, body, key and address"),
        }
    }
}

/// How requests get their names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Naming {
    /// The first source that says something counts.
    pub order: Vec<Source>,
    /// Names for what the sources say: hash of a key, address, or any other. These stand as they are.
    pub aliases: BTreeMap<String, String>,
}

impl Naming {
    /// The name of who asked; `None` where no source says anything.
    pub fn name(&self, head: Option<&Head>, body: &Body, client: Option<IpAddr>) -> Option<String> {
        let said = self.order.iter().find_map(|source| match source {
            Source::Header => head?.user_header.clone(),
            Source::Body => body.user.clone(),
            Source::Key => head?.api_key.map(|key| key.to_string()),
            Source::Address => client.map(|client| client.to_string()),
        })?;
        Some(self.aliases.get(&said).cloned().unwrap_or_else(|| self_named(said)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{
        payload::{body, head},
        staged::{options, post},
    };

    #[test]
    fn nobody_hides_among_none_and_other() {
        for hidden in
            ["none", "other", "None", "OTHER", " none ", "no\u{200b}ne", "o-t-h-e-r", "~none", "~~other"]
        {
            assert_eq!(self_named(hidden.to_owned()), format!("~{hidden}"));
        }
        for name in ["nobody", "others", "another", "", "n one", "~ada"] {
            let expected = if name == "n one" { "~n one" } else { name };
            assert_eq!(self_named(name.to_owned()), expected);
        }
        let body = body::parse(br#"{"user":"none"}"#);
        let name = |aliases: BTreeMap<String, String>| {
            Naming { order: vec![Source::Body], aliases }.name(None, &body, None)
        };
        assert_eq!(name(BTreeMap::new()).as_deref(), Some("~none"));
        assert_eq!(
            name([("none".to_owned(), OTHER.to_owned())].into()).as_deref(),
            Some(OTHER),
            "the operator may"
        );
    }

    #[test]
    fn the_first_source_counts_and_aliases_rename() {
        let bytes = post("/completion", "X-User: anna\r\nX-Api-Key: secret\r\n", "");
        let head = head::parse(&bytes, &options()).unwrap();
        let body = body::parse(br#"{"user":"team"}"#);
        let client = Some(IpAddr::from([10, 0, 0, 7]));
        let name = |order: &[Source], aliases: &[(&str, &str)]| {
            let aliases = aliases.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            Naming { order: order.to_vec(), aliases }.name(Some(&head), &body, client)
        };
        use Source::{Address, Body, Header, Key};
        assert_eq!(name(&[Header, Body, Key, Address], &[]).as_deref(), Some("anna"));
        assert_eq!(name(&[Body, Header], &[]).as_deref(), Some("team"));
        assert_eq!(name(&[Address], &[("10.0.0.7", "laptop")]).as_deref(), Some("laptop"));
        let hash = name(&[Key], &[]).unwrap();
        assert!(hash.len() == 16 && !hash.contains("secret"), "{hash}");
        assert_eq!(name(&[Key], &[(&hash, "billing")]).as_deref(), Some("billing"));
        assert_eq!(name(&[], &[]), None);
        assert_eq!(Naming { order: vec![Header, Key], ..Naming::default() }.name(None, &body, client), None);
    }
}
