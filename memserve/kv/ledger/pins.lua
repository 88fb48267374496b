-- Pins: chunks that are kept from eviction for a time. Keys and fields are in prelude.lua.
--
-- A pinned entry has FIELD.pinned_until, is worth NOT_EVICTABLE, is due when its pin runs out, and is counted
-- in KEY.pinned.

function pins.is_pinned(member) return entries.read(member, FIELD.pinned_until) ~= NOT_PINNED end

-- The chunk is an ordinary one again.
function pins.remove(member, ttl_s, to_prolong)
  local bytes, tenant, uses, cost, depth, worth_after_pin, parent = entries.read(member,
    FIELD.bytes, FIELD.tenant, FIELD.uses, FIELD.cost, FIELD.depth, FIELD.worth_after_pin, FIELD.parent)
  redis.call('HSET', entry_key(member), FIELD.pinned_until, NOT_PINNED)
  usage.add(KEY.pinned, tenant, -tonumber(bytes))
  local own_worth = worth.of_own(tonumber(uses), tonumber(cost), tonumber(depth))
  local new_worth = math.max(own_worth, tonumber(worth_after_pin))
  worth.rank(member, tenant, new_worth)
  entries.set_due(member, NOW_S + ttl_s)
  append(to_prolong.refresh, member)
  worth.lift_ancestors(parent, new_worth, ttl_s, to_prolong)
end

-- Arguments: seconds, limit in bytes of the tenant's pins and of all (0: none), tenant; then members. All or
-- nothing. A longer pin stays. Returns 1 or 0, the tenant's pinned bytes, how many of the members are there,
-- and for how many seconds each is pinned now.
function scripts.pin()
  local pin_s, limit_bytes, limit_all_bytes = arguments.number(), arguments.number(), arguments.number()
  local tenant, members = arguments.text(), arguments.rest()
  local chunks, new_bytes, lives_s = {}, 0, {}
  for _, member in ipairs(members) do
    local state, owner, bytes, pinned_until =
      entries.read(member, FIELD.state, FIELD.tenant, FIELD.bytes, FIELD.pinned_until)
    if state == STATE.committed and owner == tenant then
      local chunk = {
        member = member,
        bytes = tonumber(bytes),
        is_pinned = pinned_until ~= NOT_PINNED,
        pinned_until_s = tonumber(pinned_until),
      }
      append(chunks, chunk)
      if not chunk.is_pinned then new_bytes = new_bytes + chunk.bytes end
    end
  end
  local pinned_bytes = usage.of(KEY.pinned, tenant)
  local is_over_limit = limit_bytes > 0 and pinned_bytes + new_bytes > limit_bytes
  local is_over_limit_of_all = limit_all_bytes > 0 and usage.of(KEY.pinned, ALL) + new_bytes > limit_all_bytes
  if #chunks < #members or is_over_limit or is_over_limit_of_all then
    return {0, pinned_bytes, #chunks, lives_s}
  end
  for _, chunk in ipairs(chunks) do
    if not chunk.is_pinned then
      usage.add(KEY.pinned, tenant, chunk.bytes)
      local worth_before = redis.call('ZSCORE', KEY.worth, chunk.member)
      redis.call('HSET', entry_key(chunk.member), FIELD.worth_after_pin, worth_before)
    end
    local pinned_until_s = math.max(NOW_S + pin_s, chunk.pinned_until_s)
    redis.call('HSET', entry_key(chunk.member), FIELD.pinned_until, pinned_until_s)
    worth.rank(chunk.member, tenant, NOT_EVICTABLE)
    entries.set_due(chunk.member, pinned_until_s)
    append(lives_s, math.ceil(pinned_until_s - NOW_S))
  end
  return {1, pinned_bytes + new_bytes, #chunks, lives_s}
end

-- Arguments: ttl_s, tenant; then members. Returns how many were pinned, and the members whose values live on
-- for ttl_s.
function scripts.unpin()
  run_even_if_full()
  local ttl_s, tenant = arguments.number(), arguments.text()
  local freed, to_prolong = 0, worth.new_prolongations()
  for _, member in ipairs(arguments.rest()) do
    local state, owner, pinned_until = entries.read(member, FIELD.state, FIELD.tenant, FIELD.pinned_until)
    if state == STATE.committed and owner == tenant and pinned_until ~= NOT_PINNED then
      pins.remove(member, ttl_s, to_prolong)
      freed = freed + 1
    end
  end
  return {freed, to_prolong.refresh}
end
