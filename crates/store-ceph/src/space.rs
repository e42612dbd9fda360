//! What the monitors know of a pool's room: their command in JSON, and what they answer. Pure.
//!
//! The figures are those of the manager's last report, some seconds old. They take the full ratio, the copies of each object and the
//! pool's quota into account: with nothing left, a write is refused.

use ferry_store::{PoolId, Space};
use serde_json::{Value, json};

/// Asks for the room of all pools.
pub(crate) fn ask() -> String {
    json!({"prefix": "df", "detail": "detail", "format": "json"}).to_string()
}

/// The room of one in the answer. `None`: it does not say (as long as no manager has reported, all figures are zero).
pub(crate) fn parse(answer: &[u8], pool: PoolId) -> Option<Space> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64);
    if number(answer.get("stats")?, "total_bytes")? == 0 {
        return None;
    }
    let mut pools = answer.get("pools")?.as_array()?.iter();
    let found = pools.find(|entry| entry.get("id").and_then(Value::as_i64) == Some(pool.0))?;
    let stats = found.get("stats")?;
    let stored = number(stats, "stored").unwrap_or(0);
    let free = number(stats, "max_avail")?;
    let quota = number(stats, "quota_bytes").filter(|quota| *quota > 0);
    let free_bytes = quota.map_or(free, |quota| free.min(quota.saturating_sub(stored)));
    Some(Space {
        free_bytes,
        total_bytes: free_bytes.saturating_add(stored),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(total: u64, max_avail: u64, quota: u64) -> Vec<u8> {
        json!({
            "stats": {"total_bytes": total},
            "pools": [
                {"id": 1, "name": "a", "stats": {"stored": 7, "max_avail": 1, "quota_bytes": 0}},
                {"id": 2, "name": "b", "stats": {"stored": 100, "max_avail": max_avail, "quota_bytes": quota}},
            ],
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn room_is_what_the_cluster_has_for_the_pool_and_the_quota_leaves() {
        let space = |total, max_avail, quota| parse(&answer(total, max_avail, quota), PoolId(2));
        let of = |free_bytes| {
            Some(Space {
                free_bytes,
                total_bytes: free_bytes + 100,
            })
        };
        assert_eq!(space(1000, 500, 0), of(500));
        assert_eq!(space(1000, 500, 300), of(200));
        assert_eq!(space(1000, 500, 50), of(0));
        assert_eq!(space(1000, 0, 0), of(0));
    }

    #[test]
    fn what_is_not_known_is_not_taken_for_full() {
        assert_eq!(parse(&answer(0, 0, 0), PoolId(2)), None);
        assert_eq!(parse(&answer(1000, 500, 0), PoolId(3)), None);
        for other in [
            &b""[..],
            b"[]",
            b"{\"stats\":{}}",
            b"{\"stats\":{\"total_bytes\":1}}",
        ] {
            assert_eq!(parse(other, PoolId(2)), None);
        }
    }
}
