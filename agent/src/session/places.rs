//! Under which label each server is told apart from all others. In: where it listens, and the place where that address
//! means something. Out: the value of `server`. Pure.
//!
//! The first server on an address is called by it. Another one that lives at the same time has the name of its place
//! behind it (`0.0.0.0:8080#blue`), or a number where both are in one place (`#2`: sockets shared by `SO_REUSEPORT`). A
//! process keeps its label for life; who comes back to the place where it was gets the label that it had.

use std::collections::VecDeque;

use crate::discovery::process::Place;

/// What stands between the address and what tells apart.
const MARK: char = '#';
/// Labels that are remembered beyond the lives of their processes: more than are ever told apart at once.
const REMEMBERED: usize = 1024;

/// The labels that were given.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// The oldest first.
    given: VecDeque<Given>,
}

#[derive(Debug, PartialEq, Eq)]
struct Given {
    address: String,
    place: Place,
    label: String,
}

impl Places {
    /// The label of a server that listens on `address` in `place`. `is_taken` says which a living process has.
    pub(super) fn label(&mut self, address: &str, place: &Place, is_taken: impl Fn(&str) -> bool) -> String {
        let of_address = || self.given.iter().filter(|given| given.address == address);
        let before = of_address().find(|given| is_here(given, place) && !is_taken(&given.label));
        let label = before.map(|given| given.label.clone()).unwrap_or_else(|| {
            // Whoever has the plain address may be in the same place.
            let holder = of_address().rfind(|given| given.label == address);
            let apart = holder.is_some_and(|holder| !is_here(holder, place)) && !place.name.is_empty();
            let named = format!("{address}{MARK}{}", place.name);
            let numbered = (2_u32..)
                .map(|n| if apart { format!("{named}{MARK}{n}") } else { format!("{address}{MARK}{n}") });
            let mut free =
                [address.to_owned()].into_iter().chain(apart.then(|| named.clone())).chain(numbered);
            free.find(|label| !is_taken(label)).unwrap_or(named)
        });
        self.remember(Given { address: address.to_owned(), place: place.clone(), label: label.clone() });
        label
    }

    fn remember(&mut self, given: Given) {
        self.given.retain(|known| *known != given);
        if self.given.len() >= REMEMBERED {
            self.given.pop_front();
        }
        self.given.push_back(given);
    }
}

/// Whether a label was given in this place. Namespaces are made anew with a container or a pod, whose name stays.
fn is_here(given: &Given, place: &Place) -> bool {
    given.place.name == place.name && (!place.name.is_empty() || given.place.network == place.network)
}

/// The address in a label, without what tells it from others.
pub fn address(label: &str) -> &str {
    label.split_once(MARK).map_or(label, |(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "0.0.0.0:8080";

    fn place(network: u64, name: &str) -> Place {
        Place { network, name: name.to_owned() }
    }

    #[test]
    fn living_servers_are_told_apart_and_come_back_to_their_labels() {
        let mut places = Places::default();
        let mut label =
            |place: &Place, living: &[&str]| places.label(ADDRESS, place, |label| living.contains(&label));
        let (blue, red) = (place(1, "blue"), place(2, "red"));
        let both = [ADDRESS, "0.0.0.0:8080#red"];
        assert_eq!(label(&blue, &[]), ADDRESS);
        assert_eq!(label(&red, &both[..1]), both[1]);
        // Each comes back alone, in either order, whoever lives.
        assert_eq!(label(&red, &[]), both[1]);
        assert_eq!(label(&blue, &both[1..]), ADDRESS);
        assert_eq!(label(&red, &both[..1]), both[1]);
        // A container that is made anew goes on where the address is free.
        assert_eq!(label(&place(3, "green"), &both[1..]), ADDRESS);
        assert_eq!(label(&blue, &both), "0.0.0.0:8080#blue");
    }

    #[test]
    fn sockets_that_are_shared_in_one_place_are_numbered() {
        let mut places = Places::default();
        let mut label =
            |place: &Place, living: &[&str]| places.label(ADDRESS, place, |label| living.contains(&label));
        let (here, there) = (place(1, ""), place(2, "red"));
        let (second, third) = ("0.0.0.0:8080#2", "0.0.0.0:8080#3");
        assert_eq!(label(&here, &[]), ADDRESS);
        assert_eq!(label(&here, &[ADDRESS]), second);
        assert_eq!(label(&here, &[ADDRESS, second]), third);
        assert_eq!(label(&here, &[ADDRESS, third]), second, "the lowest that is free");
        assert_eq!(label(&there, &[ADDRESS]), "0.0.0.0:8080#red");
        assert_eq!(label(&there, &[ADDRESS, "0.0.0.0:8080#red"]), "0.0.0.0:8080#red#2");
        // What cannot be told apart by its place has a number, too.
        assert_eq!(label(&place(3, ""), &[ADDRESS, second, third]), "0.0.0.0:8080#4");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_addresses_are_found_again() {
        let mut places = Places::default();
        for n in 0..3 * REMEMBERED {
            places.label(&format!("h:{n}"), &place(1, ""), |_| false);
        }
        assert_eq!(places.given.len(), REMEMBERED);
        for label in [ADDRESS, "0.0.0.0:8080#red", "0.0.0.0:8080#red#2"] {
            assert_eq!(address(label), ADDRESS);
        }
    }
}
