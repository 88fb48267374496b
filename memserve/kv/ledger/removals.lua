-- Removals: chunks are condemned, their values are unlinked, and then they are settled as gone. Keys and
-- fields are in prelude.lua.
--
-- A condemned entry stays counted until its value is known to be gone, is worth NOT_EVICTABLE, and is due
-- again where nobody confirms that.

function removals.condemn(member, tenant, retry_at_s)
  redis.call('HSET', entry_key(member), FIELD.state, STATE.condemned)
  worth.rank(member, tenant, NOT_EVICTABLE)
  entries.set_due(member, retry_at_s)
end

-- Arguments: retry_s, tenant (ALL: any), module (ALL: any); then members.
-- Returns the condemned ones (member, generation, ...), and how many stay because they are pinned.
function scripts.condemn()
  run_even_if_full()
  local retry_s, wanted_tenant, wanted_module = arguments.number(), arguments.text(), arguments.text()
  local condemned, kept = {}, 0
  for _, member in ipairs(arguments.rest()) do
    local state, tenant, module, generation, pinned_until =
      entries.read(member, FIELD.state, FIELD.tenant, FIELD.module, FIELD.generation, FIELD.pinned_until)
    local is_of_tenant = wanted_tenant == ALL or wanted_tenant == tenant
    local is_of_module = wanted_module == ALL or wanted_module == module
    if state == STATE.committed and is_of_tenant and is_of_module then
      if pinned_until ~= NOT_PINNED then
        kept = kept + 1
      else
        removals.condemn(member, tenant, NOW_S + retry_s)
        append(condemned, member, generation)
      end
    end
  end
  return {condemned, kept}
end

local REASON_WHEN_DUE = {
  [STATE.committed] = 'expired',
  [STATE.reserved] = 'abandoned',
  [STATE.condemned] = 'again',
}

-- Arguments: ttl_s, retry_s, limit. Ends pins that have run out. Returns what is to be removed (member,
-- generation, reason, ...), and the members whose values live on for ttl_s.
function scripts.due()
  run_even_if_full()
  local ttl_s, retry_s, limit = arguments.number(), arguments.number(), arguments.number()
  local to_remove, to_prolong = {}, worth.new_prolongations()
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEY.due, '-inf', NOW_S, 'LIMIT', 0, limit)) do
    local state, tenant, generation, pinned_until =
      entries.read(member, FIELD.state, FIELD.tenant, FIELD.generation, FIELD.pinned_until)
    if not state then
      -- Redis has evicted the entry itself. Whose it was is not known.
      redis.call('ZREM', KEY.due, member)
      redis.call('ZREM', KEY.worth, member)
    elseif state == STATE.committed and pinned_until ~= NOT_PINNED then
      pins.remove(member, ttl_s, to_prolong)
    else
      removals.condemn(member, tenant, NOW_S + retry_s)
      append(to_remove, member, generation, REASON_WHEN_DUE[state])
    end
  end
  return {to_remove, to_prolong.refresh}
end
