-- Entries: the hash of each chunk that is counted, and the sums over them. Keys and fields are in
-- prelude.lua.
--
-- An entry is in KEY.worth and in its tenant's worth with the same score, and in KEY.due. An entry of a
-- module is in the module's set. The sums of KEY.bytes, KEY.chunks and KEY.pinned are over the entries of the
-- tenant, and of all.

-- The named fields, in their order. false for a field that is not set.
function entries.read(member, ...) return unpack(redis.call('HMGET', entry_key(member), ...)) end

function entries.state(member) return redis.call('HGET', entry_key(member), FIELD.state) end

-- Returns the generation. The caller ranks the entry and says when it is due.
function entries.create(chunk, owner, cost)
  local generation = redis.call('INCR', KEY.generation)
  redis.call('HSET', entry_key(chunk.member),
    FIELD.state, STATE.reserved,
    FIELD.bytes, chunk.bytes,
    FIELD.tenant, owner.tenant,
    FIELD.module, owner.module,
    FIELD.uses, 1,
    FIELD.cost, cost,
    FIELD.parent, chunk.parent,
    FIELD.depth, chunk.depth,
    FIELD.generation, generation,
    FIELD.pinned_until, NOT_PINNED)
  usage.add(KEY.bytes, owner.tenant, chunk.bytes)
  usage.add(KEY.chunks, owner.tenant, 1)
  if owner.module ~= '' then redis.call('SADD', module_key(owner.module), chunk.member) end
  return generation
end

-- The value is known to be gone: no longer count it.
function entries.drop(member)
  local bytes, tenant, module, pinned_until =
    entries.read(member, FIELD.bytes, FIELD.tenant, FIELD.module, FIELD.pinned_until)
  if not bytes then return end
  usage.add(KEY.bytes, tenant, -tonumber(bytes))
  usage.add(KEY.chunks, tenant, -1)
  if pinned_until ~= NOT_PINNED then usage.add(KEY.pinned, tenant, -tonumber(bytes)) end
  redis.call('ZREM', KEY.worth, member)
  redis.call('ZREM', tenant_worth_key(tenant), member)
  redis.call('ZREM', KEY.due, member)
  if module ~= '' then redis.call('SREM', module_key(module), member) end
  redis.call('DEL', entry_key(member))
end

-- Say when something is to be done about the entry, in seconds since the epoch.
function entries.set_due(member, due_s) redis.call('ZADD', KEY.due, due_s, member) end

function entries.due(member) return tonumber(redis.call('ZSCORE', KEY.due, member)) end

-- The value is there. It lives for ttl_s from now, a pinned one until its pin runs out.
function entries.commit(member, ttl_s, to_prolong)
  local tenant, cost, parent, depth, uses, pinned_until = entries.read(member,
    FIELD.tenant, FIELD.cost, FIELD.parent, FIELD.depth, FIELD.uses, FIELD.pinned_until)
  redis.call('HSET', entry_key(member), FIELD.state, STATE.committed)
  if pinned_until ~= NOT_PINNED then
    entries.set_due(member, pinned_until)
    return
  end
  local own_worth = worth.of_own(tonumber(uses), tonumber(cost), tonumber(depth))
  worth.rank(member, tenant, own_worth)
  entries.set_due(member, NOW_S + ttl_s)
  worth.lift_ancestors(parent, own_worth, ttl_s, to_prolong)
end

-- counter: KEY.bytes, KEY.chunks or KEY.pinned.
function usage.add(counter, tenant, amount)
  for _, scope in ipairs({tenant, ALL}) do
    if redis.call('HINCRBY', counter, scope, amount) == 0 then redis.call('HDEL', counter, scope) end
  end
end

function usage.of(counter, scope) return tonumber(redis.call('HGET', counter, scope) or '0') end
