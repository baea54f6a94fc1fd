//! How many connections there are, and whose: no user can keep the others out, and nobody keeps root out. Nor does
//! anybody take much memory by beginning to say something.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Semaphore;

/// Most connections at once.
const CONNECTIONS_MAX: usize = 4096;

/// Most of one user who is not root.
const CONNECTIONS_OF_USER_MAX: usize = CONNECTIONS_MAX / 2;

/// What others leave to root.
const KEPT_FOR_ROOT: usize = 64;

/// Requests of one user that are being read; further ones wait for these.
const READING_MAX: usize = 64;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Guests {
    of_users: RefCell<HashMap<u32, OfUser>>,
}

#[derive(Debug)]
struct OfUser {
    count: usize,
    reading: Rc<Semaphore>,
}

/// A connection that is counted, until this goes.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Rc<Guests>,
    uid: u32,
    /// To be held while what it says is read.
    pub(super) reading: Rc<Semaphore>,
}

impl Guests {
    /// Counts one more of this user, if there is room.
    pub(super) fn welcome(self: &Rc<Self>, uid: u32) -> Option<Guest> {
        let mut of_users = self.of_users.borrow_mut();
        let all = of_users.values().map(|user| user.count).sum();
        if !has_room(all, of_users.get(&uid).map_or(0, |user| user.count), uid) {
            return None;
        }
        let new = || OfUser { count: 0, reading: Rc::new(Semaphore::new(READING_MAX)) };
        let user = of_users.entry(uid).or_insert_with(new);
        user.count += 1;
        Some(Guest { guests: Rc::clone(self), uid, reading: Rc::clone(&user.reading) })
    }
}

fn has_room(all: usize, own: usize, uid: u32) -> bool {
    match uid {
        0 => all < CONNECTIONS_MAX,
        _ => all < CONNECTIONS_MAX - KEPT_FOR_ROOT && own < CONNECTIONS_OF_USER_MAX,
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut of_users = self.guests.of_users.borrow_mut();
        if let Some(user) = of_users.get_mut(&self.uid) {
            user.count -= 1;
            if user.count == 0 {
                of_users.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_leaves_room_for_others_and_all_of_them_for_root() {
        let guests = Rc::new(Guests::default());
        let many = |uid| -> Vec<Guest> { std::iter::from_fn(|| guests.welcome(uid)).collect() };
        let first = many(1000);
        assert_eq!(first.len(), CONNECTIONS_OF_USER_MAX);
        let second = many(1001);
        assert_eq!(second.len(), CONNECTIONS_MAX - KEPT_FOR_ROOT - CONNECTIONS_OF_USER_MAX);
        assert!(guests.welcome(1002).is_none());
        assert_eq!(many(0).len(), KEPT_FOR_ROOT);
        drop(first);
        assert!(guests.welcome(1002).is_some());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let guests = Rc::new(Guests::default());
        drop((guests.welcome(7), guests.welcome(8)));
        assert!(guests.of_users.borrow().is_empty());
    }
}
