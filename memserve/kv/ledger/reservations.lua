-- Reservations: chunks are counted before they are written, and settled afterwards. Keys and fields are in
-- prelude.lua.
--
-- A reserved entry is worth NOT_EVICTABLE and is due when its writer is taken for dead.

-- How much of a member's name a seen_key keeps: it tells chunks apart, in less memory than all of it.
local SEEN_NAME_LENGTH = 24

local function ranking_key(scope)
  if scope == ALL then return KEY.worth end
  return tenant_worth_key(scope)
end

-- What must go for the chunks of one call. quotas: bytes by scope, 0 for no limit. `victims` of the result
-- are member, generation, reason, ...
local function new_eviction(tenant, quotas, retry_at_s)
  local eviction = {victims = {}}
  -- Bytes of the victims by scope: they are counted until their values are gone.
  local freed_bytes = {[ALL] = 0, [tenant] = 0}
  -- Members that must stay: what the chunks stand on, and the chunks themselves. nil until the first need.
  local protected = nil

  local function is_protected(member, parent)
    if not protected then
      protected = {}
      local ancestor = parent
      while ancestor and ancestor ~= '' and not protected[ancestor] do
        protected[ancestor] = true
        ancestor = redis.call('HGET', entry_key(ancestor), FIELD.parent)
      end
    end
    return protected[member]
  end

  function eviction.protect(member)
    if protected then protected[member] = true end
  end

  -- Condemn the least worthy of the scope until `bytes` more fit. False where all that is left must stay.
  function eviction.make_room(scope, bytes, parent, reason)
    if quotas[scope] == 0 then return true end
    while usage.of(KEY.bytes, scope) + bytes - freed_bytes[scope] > quotas[scope] do
      local victim, victims_worth = unpack(redis.call('ZRANGE', ranking_key(scope), 0, 0, 'WITHSCORES'))
      if not victim or victims_worth == 'inf' or is_protected(victim, parent) then return false end
      local victims_bytes, owner, generation =
        entries.read(victim, FIELD.bytes, FIELD.tenant, FIELD.generation)
      removals.condemn(victim, owner, retry_at_s)
      worth.advance_clock(victims_worth)
      freed_bytes[ALL] = freed_bytes[ALL] + tonumber(victims_bytes)
      if owner == tenant then freed_bytes[tenant] = freed_bytes[tenant] + tonumber(victims_bytes) end
      append(eviction.victims, victim, generation, reason)
    end
    return true
  end

  -- Whether a chunk of `bytes` could be kept at all, whatever else goes.
  function eviction.could_ever_fit(bytes)
    for _, scope in ipairs({tenant, ALL}) do
      if quotas[scope] > 0 and bytes > quotas[scope] then return false end
    end
    return true
  end

  return eviction
end

-- Whether a chunk that is not counted may be stored now: at its first use or at its second, as the request
-- says. Remembers its first use.
local function is_admitted(member, request)
  if request.admit_on_use < 2 then return true end
  local window = math.floor(NOW_S / request.window_s)
  local name = string.sub(member, -SEEN_NAME_LENGTH)
  for _, each_window in ipairs({window, window - 1}) do
    if redis.call('SISMEMBER', seen_key(each_window), name) == 1 then return true end
  end
  redis.call('SADD', seen_key(window), name)
  redis.call('EXPIRE', seen_key(window), math.ceil(2 * request.window_s))
  return false
end

-- The chunks whose values are there were used. Each run of them without a gap is a chain.
local function use_present_chunks(chunks, ttl_s, to_prolong)
  local last = #chunks
  while last > 0 do
    local first = last
    if chunks[last].is_present then
      while first > 1 and chunks[first - 1].is_present do first = first - 1 end
      local members = {}
      for number = first, last do append(members, chunks[number].member) end
      worth.use_chain(members, ttl_s, to_prolong)
    end
    last = first - 1
  end
end

-- Returns the admission, and the generation of a chunk that is to be stored.
local function reserve_chunk(chunk, request, eviction, to_prolong)
  local member, owner = chunk.member, request.owner
  local state = entries.state(member)
  if chunk.is_present then
    if not state then
      entries.create(chunk, owner, request.cost)
      entries.commit(member, request.ttl_s, to_prolong)
    end
    return 'present', 0
  end
  if state == STATE.condemned or (state == STATE.reserved and entries.due(member) > NOW_S) then
    return 'busy', 0
  end
  -- What is counted here has no value: Redis has evicted it, or its writer died.
  if state == STATE.committed and pins.is_pinned(member) then
    -- A pinned chunk is written again, and stays pinned.
    local generation = redis.call('INCR', KEY.generation)
    redis.call('HSET', entry_key(member),
      FIELD.state, STATE.reserved, FIELD.generation, generation, FIELD.may_have_value, 1)
    entries.set_due(member, request.due_s)
    return 'store', generation
  end
  if not state and not is_admitted(member, request) then return 'not_yet', 0 end
  local counted_bytes = state and tonumber((entries.read(member, FIELD.bytes))) or 0
  local new_bytes = chunk.bytes - counted_bytes
  if not eviction.could_ever_fit(chunk.bytes)
    or not eviction.make_room(owner.tenant, new_bytes, chunk.parent, 'tenant_quota')
    or not eviction.make_room(ALL, new_bytes, chunk.parent, 'cache_quota') then
    return 'no_room', 0
  end
  if state then entries.drop(member) end
  local generation = entries.create(chunk, owner, request.cost)
  if state then redis.call('HSET', entry_key(member), FIELD.may_have_value, 1) end
  worth.rank(member, owner.tenant, NOT_EVICTABLE)
  entries.set_due(member, request.due_s)
  return 'store', generation
end

local function read_chunks()
  local chunks = {}
  while arguments.position < #ARGV do
    local member, bytes, parent = arguments.text(), arguments.number(), arguments.text()
    local depth, is_present = arguments.number(), arguments.text() == '1'
    append(chunks, {member = member, bytes = bytes, parent = parent, depth = depth, is_present = is_present})
  end
  return chunks
end

-- Arguments: reserve_s, ttl_s, quota of all, quota of the tenant, tenant, module, cost, admit_on_use,
-- window_s; then of each chunk, a chain's beginning first: member, bytes, parent, depth, 1 where its value is
-- there. Returns admissions, generations, victims (member, generation, reason, ...), the members whose values
-- live on for ttl_s, and pinned members with their seconds.
function scripts.reserve()
  local reserve_s, ttl_s = arguments.number(), arguments.number()
  local quota_of_all, quota_of_tenant = arguments.number(), arguments.number()
  local tenant, module = arguments.text(), arguments.text()
  local cost, admit_on_use, window_s = arguments.number(), arguments.number(), arguments.number()
  local request = {
    owner = {tenant = tenant, module = module},
    cost = cost,
    admit_on_use = admit_on_use,
    window_s = window_s,
    ttl_s = ttl_s,
    due_s = NOW_S + reserve_s,
  }
  local chunks = read_chunks()
  local admissions, generations, to_prolong = {}, {}, worth.new_prolongations()
  local eviction = new_eviction(tenant, {[ALL] = quota_of_all, [tenant] = quota_of_tenant}, request.due_s)
  use_present_chunks(chunks, ttl_s, to_prolong)
  for _, chunk in ipairs(chunks) do
    local admission, generation = reserve_chunk(chunk, request, eviction, to_prolong)
    eviction.protect(chunk.member)
    append(admissions, admission)
    append(generations, generation)
  end
  return {admissions, generations, eviction.victims, to_prolong.refresh, to_prolong.pinned}
end

-- Arguments: ttl_s; then triples: what became of a value (stored, failed, gone), member, generation. Returns
-- the members whose reservation was lost (their values must go), and the members whose values live on for
-- ttl_s.
function scripts.settle()
  run_even_if_full()
  local ttl_s = arguments.number()
  local lost, to_prolong = {}, worth.new_prolongations()
  while arguments.position < #ARGV do
    local outcome, member, settled_generation = arguments.text(), arguments.text(), arguments.text()
    local state, generation, may_have_value, tenant =
      entries.read(member, FIELD.state, FIELD.generation, FIELD.may_have_value, FIELD.tenant)
    local is_same = generation == settled_generation
    local is_reserved = is_same and state == STATE.reserved
    if outcome == 'stored' then
      if is_reserved then entries.commit(member, ttl_s, to_prolong) else append(lost, member) end
    elseif outcome == 'failed' then
      -- An older value may be there: whoever keeps the cache removes it.
      if is_reserved and may_have_value then
        removals.condemn(member, tenant, NOW_S)
      elseif is_reserved then
        entries.drop(member)
      end
    elseif is_same and not is_reserved then
      entries.drop(member)
    end
  end
  return {lost, to_prolong.refresh}
end
