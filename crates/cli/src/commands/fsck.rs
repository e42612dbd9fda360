//! `rbd fsck`: what the engine's check and that of the images find, and what a repair put right.
//!
//! Exit codes: 0 nothing is wrong (any more), 117 (`EUCLEAN`) something is left over that harms nobody, 5 (`EIO`) something is
//! damaged.

use std::sync::Arc;

use ferry_image::{admin, check};
use ferry_store::check::{CheckOptions, Finding, Gravity};
use ferry_store::{PoolInfo, Store};

use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::{EIO, Failure};
use crate::output::{Document, Node};

/// `EUCLEAN`: nothing is lost, and something is to be cleaned up.
const EUCLEAN: i32 = 117;

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let named = match args.text("pool") {
        Some(pool) => Some(pool.to_owned()),
        None => args.next_positional().map(str::to_owned),
    };
    let format = args.output_format()?;
    let options = CheckOptions {
        repair: args.flag("repair"),
        read_data: args.flag("read-data"),
    };
    args.finish()?;
    let store = session.store().await?;
    let findings = match named.as_deref().map(What::parse).transpose()? {
        Some(What::Image {
            pool,
            namespace,
            name,
        }) => {
            let io = admin::pool::open(store, pool, namespace)
                .await
                .map_err(|error| error.failed(format_args!("error opening pool '{pool}'")))?;
            check::image(&io, name, options)
                .await
                .map_err(|error| error.failed(format_args!("checking image '{name}' failed")))?
        }
        Some(What::Pool(pool)) => pools(session, store, Some(pool), options).await?,
        None => pools(session, store, None, options).await?,
    };
    match format.is_plain() {
        true => say(&plain(&findings))?,
        false => say(&document(&findings).render(format))?,
    }
    match worst(&findings) {
        Some(Gravity::Damage) => Err(Failure::silent(EIO)),
        Some(Gravity::Leftover) => Err(Failure::silent(EUCLEAN)),
        _ => Ok(()),
    }
}

/// What the positional names.
enum What<'a> {
    Pool(&'a str),
    Image {
        pool: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
}

impl<'a> What<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [pool] => Ok(Self::Pool(pool)),
            [pool, name] => Ok(Self::Image {
                pool,
                namespace: "",
                name,
            }),
            [pool, namespace, name] => Ok(Self::Image {
                pool,
                namespace,
                name,
            }),
            _ => Err(Failure::invalid(format_args!(
                "'{text}' names no pool and no image"
            ))),
        }
    }
}

/// One pool, or all and what is no pool's: what the engine keeps, then the images.
async fn pools(
    session: &Session,
    store: &Arc<dyn Store>,
    named: Option<&str>,
    options: CheckOptions,
) -> Result<Vec<Finding>, Failure> {
    let pools = admin::pool::list(store)
        .await
        .map_err(|error| error.failed("listing pools failed"))?;
    let is_wanted = |pool: &&PoolInfo| named.is_none_or(|named| named == pool.name);
    let wanted: Vec<&PoolInfo> = pools.iter().filter(is_wanted).collect();
    if let (Some(named), true) = (named, wanted.is_empty()) {
        return Err(Failure::errno(
            format_args!("error opening pool '{named}'"),
            crate::exit::ENOENT,
        ));
    }
    let failed = |error: ferry_store::StoreError| error.failed("checking failed");
    let mut findings = Vec::new();
    if named.is_none() {
        findings.extend(
            store
                .check(None, options)
                .await
                .map_err(failed)?
                .unwrap_or_default(),
        );
    }
    let task = session.task("Check");
    let total = 2 * wanted.len() as u64;
    for (done, pool) in (0..).step_by(2).zip(&wanted) {
        task.update(done, total);
        let engine = store.check(Some(pool.id), options).await.map_err(failed)?;
        let engine = engine.unwrap_or_else(|| vec![not_checked(store.engine(), &pool.name)]);
        let is_damaged = worst(&engine) == Some(Gravity::Damage);
        findings.extend(engine);
        task.update(done + 1, total);
        match check::pool(store, pool, options).await {
            Ok(found) => findings.extend(found),
            // What the engine has found is the reason.
            Err(error) if is_damaged => findings.push(images_not_checked(&pool.name, &error.to_string())),
            Err(error) => {
                return Err(error.failed(format_args!("checking the images of pool '{}' failed", pool.name)));
            }
        }
    }
    let _ = task.end(Ok::<(), ()>(()));
    Ok(findings)
}

/// What is said of a pool whose engine has no check of its own: silence would pass for soundness.
fn not_checked(engine: &str, pool: &str) -> Finding {
    Finding {
        gravity: Gravity::Unjudged,
        kind: "engine-not-checked",
        place: format!("pool '{pool}'"),
        what: format!(
            "engine '{engine}' has no check of its own here: only what images are made of was looked at"
        ),
        advice: "a cluster checks its objects itself (scrubs)".to_owned(),
        mended: false,
    }
}

fn images_not_checked(pool: &str, why: &str) -> Finding {
    Finding {
        gravity: Gravity::Unjudged,
        kind: "images-not-checked",
        place: format!("pool '{pool}'"),
        what: format!("its images cannot be looked at: {why}"),
        advice: "mend what else was found in the pool, and check again".to_owned(),
        mended: false,
    }
}

/// The worst of what is not put right.
fn worst(findings: &[Finding]) -> Option<Gravity> {
    let open = findings.iter().filter(|finding| !finding.mended);
    open.map(|finding| finding.gravity).max()
}

fn word(finding: &Finding) -> &'static str {
    match (finding.mended, finding.gravity) {
        (true, _) => "repaired",
        (false, Gravity::Damage) => "damaged",
        (false, Gravity::Leftover) => "leftover",
        (false, Gravity::Unjudged) => "not checked",
    }
}

fn plain(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!(
            "{}: {}: {} [{}]\n",
            word(finding),
            finding.place,
            finding.what,
            finding.kind
        ));
        if !finding.advice.is_empty() {
            text.push_str(&format!("    {}\n", finding.advice));
        }
    }
    let count = |gravity| {
        let open = findings.iter().filter(|finding| !finding.mended);
        open.filter(|finding| finding.gravity == gravity).count()
    };
    text.push_str(&format!(
        "{} damaged, {} left over, {} repaired, {} not checked\n",
        count(Gravity::Damage),
        count(Gravity::Leftover),
        findings.iter().filter(|finding| finding.mended).count(),
        count(Gravity::Unjudged),
    ));
    text
}

fn document(findings: &[Finding]) -> Document {
    let mut list = Node::list("finding");
    for finding in findings {
        list.add(
            Node::map()
                .with("state", word(finding))
                .with("kind", finding.kind)
                .with("place", &finding.place)
                .with("what", &finding.what)
                .with("advice", &finding.advice),
        );
    }
    Document::new("findings", list)
}
