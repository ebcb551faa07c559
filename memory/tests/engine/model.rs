//! The engine against a model that knows nothing of sealing: a page holds what was last written to it.

use cloak_memory::page::ContextId;
use cloak_memory::state::Event;
use cloak_memory::{Mark, Memory, MemoryError, Page, PageBytes, PageKeys, PageState, Secret, Version};
use proptest::prelude::*;

use crate::doubles::{Hostile, Ram, page};

/// Two blocks and a piece, so that ranges cross their borders.
const PAGES: u64 = 150;

type Engine = Memory<Ram, Hostile>;

fn engine() -> Engine {
    let keys = PageKeys::derive(&Secret::random().unwrap(), ContextId(1), &[0; 32]).unwrap();
    Memory::new(keys, PAGES, Ram::default(), Hostile::default())
}

#[derive(Debug, Clone)]
enum Step {
    Engine(Event, Vec<Page>),
    /// A program writes to a page, and to the engine goes what a fault would tell it.
    Program(Page, u8),
    Mark,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let events = [Event::Fill, Event::Seal, Event::Drop, Event::Open, Event::Discard];
    let range = (0..PAGES, 1..70u64)
        .prop_map(|(first, count)| (first..(first + count).min(PAGES)).map(page).collect());
    let scattered = prop::collection::vec((0..PAGES).prop_map(page), 1..6);
    let pages = prop_oneof![range, scattered];
    let step = prop_oneof![
        4 => (prop::sample::select(events.to_vec()), pages).prop_map(|(e, p)| Step::Engine(e, p)),
        4 => ((0..PAGES).prop_map(page), any::<u8>()).prop_map(|(p, b)| Step::Program(p, b)),
        1 => Just(Step::Mark),
    ];
    prop::collection::vec(step, 1..60)
}

/// What must be so, whatever the engine does.
struct Model {
    contents: Vec<u8>,
    changed: Vec<bool>,
    versions: Vec<Version>,
    mark: Option<Mark>,
}

impl Model {
    fn write(&mut self, page: Page, byte: u8) {
        self.contents[page.number() as usize] = byte;
        self.changed[page.number() as usize] = true;
    }
}

fn program_writes(engine: &Engine, page: Page, bytes: PageBytes) {
    if engine.state(page).unwrap() == PageState::Sealed {
        engine.bring_back(&[page]).unwrap();
    }
    if engine.plaintext().peek(page).is_none() || !engine.plaintext().poke(page, bytes) {
        engine.written(page).unwrap();
        assert!(
            engine.plaintext().poke(page, bytes),
            "a page that was told of can be written"
        );
    }
}

fn perform(engine: &Engine, model: &mut Model, step: &Step) {
    match step {
        Step::Program(page, byte) => {
            program_writes(engine, *page, [*byte; 4096]);
            model.write(*page, *byte);
        }
        Step::Mark => {
            model.mark = Some(engine.mark().unwrap());
            model.changed.fill(false);
        }
        Step::Engine(Event::Fill, pages) => engine.fill(pages).unwrap(),
        Step::Engine(Event::Seal, pages) => engine.seal(pages).unwrap(),
        Step::Engine(Event::Open, pages) => engine.bring_back(pages).unwrap(),
        Step::Engine(Event::Drop, pages) => {
            let only_copy = pages
                .iter()
                .any(|&p| engine.state(p).unwrap() == PageState::Plain);
            match engine.drop_plaintext(pages) {
                Ok(()) => assert!(!only_copy),
                Err(MemoryError::Refused { .. }) => assert!(only_copy),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Engine(Event::Discard, pages) => {
            // Nothing changes where nothing is.
            let held: Vec<_> = pages
                .iter()
                .filter(|&&p| engine.state(p).unwrap() != PageState::Zero)
                .collect();
            held.into_iter().for_each(|&p| model.write(p, 0));
            engine.discard(pages).unwrap();
        }
        Step::Engine(Event::Write, _) => unreachable!("programs write"),
    }
}

fn check(engine: &Engine, model: &mut Model) {
    let reported = model.mark.map(|m| engine.changed_since(m).unwrap());
    for number in 0..PAGES {
        let (index, page) = (number as usize, page(number));
        let state = engine.state(page).unwrap();
        let plaintext = engine.plaintext().peek(page);
        assert_eq!(plaintext.is_some(), state.has_plaintext(), "{page}");
        if let Some(bytes) = plaintext {
            assert!(
                bytes == [model.contents[index]; 4096],
                "{page}: {} instead of {}",
                bytes[0],
                model.contents[index]
            );
        }
        assert_eq!(
            engine.store().held().contains_key(&page),
            state.has_sealed(),
            "{page}"
        );
        if state == PageState::Zero {
            assert_eq!(model.contents[index], 0, "{page}");
        }
        let version = engine.table().lock(page).unwrap().version(page);
        assert!(version >= model.versions[index], "{page}: versions only grow");
        model.versions[index] = version;
        if let Some(reported) = &reported {
            // More may be told, never less.
            assert!(
                !model.changed[index] || reported.contains(&page),
                "{page} changed unseen"
            );
        }
    }
    let mut used: Vec<_> = model.versions.iter().filter(|&&v| v != Version::NONE).collect();
    let all = used.len();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), all, "two pages share a version");
}

/// Everything comes back as it was written, whatever state it is in.
fn check_contents(engine: &Engine, model: &Model) {
    let all: Vec<_> = (0..PAGES).map(page).collect();
    engine.bring_back(&all).unwrap();
    engine.fill(&all).unwrap();
    for page in all {
        let bytes = engine.plaintext().peek(page).expect("it is back");
        assert_eq!(bytes, [model.contents[page.number() as usize]; 4096], "{page}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_as_the_model(steps in steps()) {
        let engine = engine();
        let mut model = Model {
            contents: vec![0; PAGES as usize],
            changed: vec![false; PAGES as usize],
            versions: vec![Version::NONE; PAGES as usize],
            mark: None,
        };
        for step in &steps {
            perform(&engine, &mut model, step);
            check(&engine, &mut model);
        }
        check_contents(&engine, &model);
    }
}

#[test]
fn an_untouched_page_is_not_told_as_changed() {
    let engine = engine();
    let all: Vec<_> = (0..PAGES).map(page).collect();
    engine.fill(&all).unwrap();
    let old = engine.mark().unwrap();
    engine.seal(&all[..10]).unwrap();
    engine.drop_plaintext(&all[..10]).unwrap();
    engine.bring_back(&all[..10]).unwrap();
    assert_eq!(engine.changed_since(old).unwrap(), []);
    program_writes(&engine, page(3), [1; 4096]);
    program_writes(&engine, page(100), [1; 4096]);
    assert_eq!(engine.changed_since(old).unwrap(), [page(3), page(100)]);
    let new = engine.mark().unwrap();
    assert_eq!(engine.changed_since(new).unwrap(), []);
    assert!(matches!(engine.changed_since(old), Err(MemoryError::OldMark)));
}

#[test]
fn several_threads_seal_what_one_would() {
    let pages: Vec<_> = (0..4096).map(page).collect();
    let keys = PageKeys::derive(&Secret::random().unwrap(), ContextId(1), &[0; 32]).unwrap();
    let engine = Memory::new(keys, 4096, Ram::default(), Hostile::default());
    for &p in &pages {
        program_writes(&engine, p, [p.number() as u8; 4096]);
    }
    engine.seal_with(4, &pages).unwrap();
    engine.drop_plaintext(&pages).unwrap();
    engine.bring_back_with(4, &pages).unwrap();
    let mut versions = Vec::new();
    for &p in &pages {
        assert_eq!(engine.plaintext().peek(p), Some([p.number() as u8; 4096]));
        versions.push(engine.table().lock(p).unwrap().version(p).number());
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=4096).collect::<Vec<_>>());
}

#[test]
fn pages_outside_are_refused_and_those_before_are_done() {
    let engine = engine();
    let outside = [PAGES, PAGES + 1, Page::END - 1];
    for number in outside {
        let result = engine.seal(&[page(PAGES - 1), page(number)]);
        assert!(matches!(result, Err(MemoryError::Outside { .. })), "{result:?}");
    }
    assert!(matches!(
        engine.written(page(PAGES)),
        Err(MemoryError::Outside { .. })
    ));
}
