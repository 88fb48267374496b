-- The cache's ledger: which chunks are counted, for whom, and what they are worth. Each script is one atomic change.
--
-- Every key shares one hash tag, so that a cluster keeps the ledger on one node; the values lie elsewhere. A chunk is counted from before
-- its value is written until after its value is known to be gone: what is counted is never less than what is stored.
--
--   entry:<member>   hash: s state, b bytes, t tenant, m module, u uses, c seconds saved by a use per MiB, p parent, d depth in tokens,
--                    g generation, pin until when (0: not), over: it took the place of one that may have a value,
--                    w worth to return to when the pin runs out
--   worth            sorted set of all members; worth:<tenant> of a tenant's. Infinite: not to be evicted now
--   due              sorted set: when something is to be done about a member
--   bytes, chunks, pinned   hashes by tenant, "*" for all
--   module:<digest>  set of members;  clock, generation: numbers;  seen:<window>: sets
--
-- States: r reserved (its value is being written), c committed, x condemned (its value is being removed).
-- Worth is GreedyDual-Size-Frequency (Cherkasova 1998): clock + uses x seconds saved per MiB, where the clock is the worth of the last
-- victim. A parent is kept worth more than its children, so the end of a chain goes before its beginning.

local P = '{memserve:kv}:'
-- Redis's own clock: those of the workers differ.
local TIME = redis.call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local INF = '+inf'
local DEPTH = 1e-10
local EPSILON = 1e-10

local function entry(member) return P .. 'entry:' .. member end

local function add(kind, tenant, amount)
  for _, name in ipairs({tenant, '*'}) do
    if redis.call('HINCRBY', P .. kind, name, amount) == 0 then redis.call('HDEL', P .. kind, name) end
  end
end

local function amount(kind, tenant) return tonumber(redis.call('HGET', P .. kind, tenant) or '0') end

local function rank(member, tenant, worth)
  redis.call('ZADD', P .. 'worth', worth, member)
  redis.call('ZADD', P .. 'worth:' .. tenant, worth, member)
end

local function own_worth(uses, cost, depth)
  return tonumber(redis.call('GET', P .. 'clock') or '0') + uses * cost - depth * DEPTH
end

local function drop(member)
  local e = redis.call('HMGET', entry(member), 'b', 't', 'm', 'pin')
  if not e[1] then return end
  add('bytes', e[2], -tonumber(e[1]))
  add('chunks', e[2], -1)
  if e[4] ~= '0' then add('pinned', e[2], -tonumber(e[1])) end
  redis.call('ZREM', P .. 'worth', member)
  redis.call('ZREM', P .. 'worth:' .. e[2], member)
  redis.call('ZREM', P .. 'due', member)
  if e[3] ~= '' then redis.call('SREM', P .. 'module:' .. e[3], member) end
  redis.call('DEL', entry(member))
end

local function create(member, state, bytes, tenant, module, cost, parent, depth)
  local generation = redis.call('INCR', P .. 'generation')
  redis.call('HSET', entry(member), 's', state, 'b', bytes, 't', tenant, 'm', module, 'u', 1, 'c', cost, 'p', parent, 'd', depth,
    'g', generation, 'pin', 0)
  add('bytes', tenant, bytes)
  add('chunks', tenant, 1)
  if module ~= '' then redis.call('SADD', P .. 'module:' .. module, member) end
  return generation
end

local function condemn(member, tenant, retry_at)
  redis.call('HSET', entry(member), 's', 'x')
  rank(member, tenant, INF)
  redis.call('ZADD', P .. 'due', retry_at, member)
end

-- Lift what stands before a chunk above it, and let it live as long. Ends where nothing needed to change.
local function lift(parent, worth, due, slack, refresh)
  while parent ~= '' do
    local e = redis.call('HMGET', entry(parent), 's', 't', 'p', 'pin')
    if e[1] ~= 'c' then return end
    if e[4] ~= '0' then
      -- Pinned: what it is worth when the pin runs out.
      if tonumber(redis.call('HGET', entry(parent), 'w')) > worth then return end
      worth = worth + EPSILON
      redis.call('HSET', entry(parent), 'w', worth)
    else
      local changed = false
      local held = tonumber(redis.call('ZSCORE', P .. 'worth', parent))
      if held <= worth then
        held = worth + EPSILON
        rank(parent, e[2], held)
        changed = true
      end
      if tonumber(redis.call('ZSCORE', P .. 'due', parent)) < due - slack then
        redis.call('ZADD', P .. 'due', due, parent)
        refresh[#refresh + 1] = parent
        changed = true
      end
      if not changed then return end
      worth = held
    end
    parent = e[3]
  end
end

-- A committed chunk was used: it is worth more, and lives on. A pinned one stays as it is and is returned with its seconds.
-- floor: what it must be worth more than. following: the member that is handled next; where that is its parent, the worth is returned for it
-- and nothing is lifted here.
local function used(member, ttl, refresh, pinned, floor, following)
  local e = redis.call('HMGET', entry(member), 's', 't', 'c', 'p', 'd', 'pin')
  if e[1] ~= 'c' then return end
  local uses = redis.call('HINCRBY', entry(member), 'u', 1)
  if e[6] ~= '0' then
    pinned[#pinned + 1] = member
    pinned[#pinned + 1] = math.max(0, math.ceil(tonumber(e[6]) - NOW)) + ttl
    if not floor then return end
    redis.call('HSET', entry(member), 'w', math.max(floor + EPSILON, tonumber(redis.call('HGET', entry(member), 'w'))))
    if e[4] == following then return floor end
    return lift(e[4], floor, NOW + ttl, ttl / 10, refresh)
  end
  local worth = math.max(own_worth(uses, tonumber(e[3]), tonumber(e[5])), tonumber(redis.call('ZSCORE', P .. 'worth', member)),
    floor and floor + EPSILON or 0)
  rank(member, e[2], worth)
  redis.call('ZADD', P .. 'due', NOW + ttl, member)
  if e[4] == following then return worth end
  lift(e[4], worth, NOW + ttl, ttl / 10, refresh)
end

local function commit(member, ttl, refresh)
  local e = redis.call('HMGET', entry(member), 't', 'c', 'p', 'd', 'u', 'pin')
  redis.call('HSET', entry(member), 's', 'c')
  if e[6] ~= '0' then
    redis.call('ZADD', P .. 'due', e[6], member)
    return
  end
  local worth = own_worth(tonumber(e[5]), tonumber(e[2]), tonumber(e[4]))
  rank(member, e[1], worth)
  redis.call('ZADD', P .. 'due', NOW + ttl, member)
  lift(e[3], worth, NOW + ttl, ttl / 10, refresh)
end

local function unpin(member, ttl, refresh)
  local e = redis.call('HMGET', entry(member), 'b', 't', 'u', 'c', 'd', 'w', 'p')
  redis.call('HSET', entry(member), 'pin', 0)
  add('pinned', e[2], -tonumber(e[1]))
  local worth = math.max(own_worth(tonumber(e[3]), tonumber(e[4]), tonumber(e[5])), tonumber(e[6]))
  rank(member, e[2], worth)
  redis.call('ZADD', P .. 'due', NOW + ttl, member)
  refresh[#refresh + 1] = member
  lift(e[7], worth, NOW + ttl, ttl / 10, refresh)
end

-- A full Redis refuses a script whose first write could need memory. What frees memory begins with one that cannot.
local function even_if_full() redis.call('DEL', P .. 'nothing') end

local scripts = {}

-- reserve_s, ttl, quota of all, quota of the tenant, tenant, module, cost, admit_on_use, window_s;
-- then of each chunk, a chain's beginning first: member, bytes, parent, depth, 1 where its value is there.
-- Returns outcomes, generations, victims (member, generation, reason, …), those whose values must live on, pinned ones with their seconds.
function scripts.reserve()
  local reserve_s, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
  local quota = {['*'] = tonumber(ARGV[4])}
  local tenant, module, cost, admit_on_use, window_s = ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  quota[tenant] = tonumber(ARGV[5])
  local outcomes, generations, victims, refresh, pinned = {}, {}, {}, {}, {}
  local credit = {['*'] = 0, [tenant] = 0}
  local before = nil

  local function stands_before(parent)
    if before == nil then
      before = {}
      local ancestor = parent
      while ancestor and ancestor ~= '' and not before[ancestor] do
        before[ancestor] = true
        ancestor = redis.call('HGET', entry(ancestor), 'p')
      end
    end
    return before
  end

  -- Condemn the least worthy until `bytes` more fit. What the chunk itself stands on is not given for it.
  local function make_room(scope, bytes, parent, reason)
    if quota[scope] == 0 then return true end
    local ranking = scope == '*' and P .. 'worth' or P .. 'worth:' .. scope
    while amount('bytes', scope) + bytes - credit[scope] > quota[scope] do
      local lowest = redis.call('ZRANGE', ranking, 0, 0, 'WITHSCORES')
      if not lowest[1] or lowest[2] == 'inf' or stands_before(parent)[lowest[1]] then return false end
      local e = redis.call('HMGET', entry(lowest[1]), 'b', 't', 'g')
      condemn(lowest[1], e[2], NOW + reserve_s)
      if tonumber(lowest[2]) > tonumber(redis.call('GET', P .. 'clock') or '0') then redis.call('SET', P .. 'clock', lowest[2]) end
      credit['*'] = credit['*'] + tonumber(e[1])
      if e[2] == tenant then credit[tenant] = credit[tenant] + tonumber(e[1]) end
      for _, part in ipairs({lowest[1], e[3], reason}) do victims[#victims + 1] = part end
    end
    return true
  end

  local function admitted(member)
    if admit_on_use < 2 then return true end
    local window = math.floor(NOW / window_s)
    local short = string.sub(member, -24)
    if redis.call('SISMEMBER', P .. 'seen:' .. window, short) == 1
      or redis.call('SISMEMBER', P .. 'seen:' .. (window - 1), short) == 1 then return true end
    redis.call('SADD', P .. 'seen:' .. window, short)
    redis.call('EXPIRE', P .. 'seen:' .. window, math.ceil(2 * window_s))
    return false
  end

  local floor = nil
  for at = #ARGV - 4, 11, -5 do
    if ARGV[at + 4] == '1' then
      floor = used(ARGV[at], ttl, refresh, pinned, floor, at > 11 and ARGV[at - 1] == '1' and ARGV[at - 5] or nil)
    else
      floor = nil
    end
  end
  for at = 11, #ARGV, 5 do
    local member, bytes, parent, depth, present = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4]
    local state = redis.call('HGET', entry(member), 's')
    local outcome, generation = 'store', 0
    if present == '1' then
      outcome = 'present'
      if not state then
        create(member, 'r', bytes, tenant, module, cost, parent, depth)
        commit(member, ttl, refresh)
      end
    elseif state == 'x' or (state == 'r' and tonumber(redis.call('ZSCORE', P .. 'due', member)) > NOW) then
      outcome = 'busy'
    else
      -- Counted, but its value is gone: evicted by Redis, or its writer died.
      local counted = state and tonumber(redis.call('HGET', entry(member), 'b')) or 0
      if state == 'c' and redis.call('HGET', entry(member), 'pin') ~= '0' then
        -- Redis has lost a pinned value: it is written again, and stays pinned.
        generation = redis.call('INCR', P .. 'generation')
        redis.call('HSET', entry(member), 's', 'r', 'g', generation, 'over', 1)
        redis.call('ZADD', P .. 'due', NOW + reserve_s, member)
      elseif not state and not admitted(member) then
        outcome = 'not_yet'
      elseif bytes > quota[tenant] and quota[tenant] > 0 or bytes > quota['*'] and quota['*'] > 0
        or not make_room(tenant, bytes - counted, parent, 'tenant_quota')
        or not make_room('*', bytes - counted, parent, 'cache_quota') then
        outcome = 'no_room'
      else
        if state then drop(member) end
        generation = create(member, 'r', bytes, tenant, module, cost, parent, depth)
        if state then redis.call('HSET', entry(member), 'over', 1) end
        rank(member, tenant, INF)
        redis.call('ZADD', P .. 'due', NOW + reserve_s, member)
      end
    end
    if before then before[member] = true end
    outcomes[#outcomes + 1] = outcome
    generations[#generations + 1] = generation
  end
  return {outcomes, generations, victims, refresh, pinned}
end

-- ttl; then triples: what became of a value (stored, failed, gone), member, generation.
-- Returns the members whose reservation was lost (their values must go), and those whose values must live on.
function scripts.settle()
  even_if_full()
  local ttl = tonumber(ARGV[2])
  local lost, refresh = {}, {}
  for at = 3, #ARGV, 3 do
    local member = ARGV[at + 1]
    local e = redis.call('HMGET', entry(member), 's', 'g', 'over', 't')
    local same = e[2] == ARGV[at + 2]
    if ARGV[at] == 'stored' then
      if same and e[1] == 'r' then commit(member, ttl, refresh) else lost[#lost + 1] = member end
    elseif ARGV[at] == 'failed' then
      if same and e[1] == 'r' then
        -- Where it was counted before, an older value may be there: whoever keeps the cache removes it.
        if e[3] then condemn(member, e[4], NOW) else drop(member) end
      end
    elseif same and e[1] ~= 'r' then
      drop(member)
    end
  end
  return {lost, refresh}
end

-- ttl; then members, a chain's beginning first. Returns the members whose values must live on, and pinned ones with their seconds.
function scripts.use()
  even_if_full()
  local ttl = tonumber(ARGV[2])
  local refresh, pinned = {}, {}
  local floor = nil
  for at = #ARGV, 3, -1 do floor = used(ARGV[at], ttl, refresh, pinned, floor, at > 3 and ARGV[at - 1] or nil) end
  return {refresh, pinned}
end

-- retry_s, tenant ("*": any), module ("*": any); then members.
-- Returns those condemned (member, generation, …), and how many stay because they are pinned.
function scripts.condemn()
  even_if_full()
  local retry_s, tenant, module = tonumber(ARGV[2]), ARGV[3], ARGV[4]
  local condemned, kept = {}, 0
  for at = 5, #ARGV do
    local e = redis.call('HMGET', entry(ARGV[at]), 's', 't', 'm', 'g', 'pin')
    if e[1] == 'c' and (tenant == '*' or tenant == e[2]) and (module == '*' or module == e[3]) then
      if e[5] ~= '0' then
        kept = kept + 1
      else
        condemn(ARGV[at], e[2], NOW + retry_s)
        condemned[#condemned + 1] = ARGV[at]
        condemned[#condemned + 1] = e[4]
      end
    end
  end
  return {condemned, kept}
end

-- ttl, retry_s, limit. Returns what is to be removed (member, generation, reason, …), and the members whose pin has run out.
function scripts.due()
  even_if_full()
  local ttl, retry_s = tonumber(ARGV[2]), tonumber(ARGV[3])
  local remove, refresh = {}, {}
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', NOW, 'LIMIT', 0, ARGV[4])) do
    local e = redis.call('HMGET', entry(member), 's', 't', 'g', 'pin')
    if not e[1] then
      redis.call('ZREM', P .. 'due', member)
      redis.call('ZREM', P .. 'worth', member)
    elseif e[1] == 'c' and e[4] ~= '0' then
      unpin(member, ttl, refresh)
    else
      condemn(member, e[2], NOW + retry_s)
      local reason = e[1] == 'c' and 'expired' or e[1] == 'r' and 'abandoned' or 'again'
      for _, part in ipairs({member, e[3], reason}) do remove[#remove + 1] = part end
    end
  end
  return {remove, refresh}
end

-- seconds, limits in bytes of the tenant's pins and of all (0: none), tenant; then members. All or nothing; a longer pin stays.
-- Returns 1 or 0, the tenant's pinned bytes, how many of the members are there, and for how many seconds each is pinned now.
function scripts.pin()
  local till, limit, limit_all, tenant = NOW + tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
  local members, more, lives = {}, 0, {}
  for at = 6, #ARGV do
    local e = redis.call('HMGET', entry(ARGV[at]), 's', 't', 'b', 'pin')
    if e[1] == 'c' and e[2] == tenant then
      members[#members + 1] = {ARGV[at], tonumber(e[3]), e[4] == '0'}
      if e[4] == '0' then more = more + tonumber(e[3]) end
    end
  end
  local pinned = amount('pinned', tenant)
  if #members < #ARGV - 5 or (limit > 0 and pinned + more > limit)
    or (limit_all > 0 and amount('pinned', '*') + more > limit_all) then return {0, pinned, #members, lives} end
  for _, member in ipairs(members) do
    if member[3] then
      add('pinned', tenant, member[2])
      redis.call('HSET', entry(member[1]), 'w', redis.call('ZSCORE', P .. 'worth', member[1]))
    end
    local ends = math.max(till, tonumber(redis.call('HGET', entry(member[1]), 'pin')))
    redis.call('HSET', entry(member[1]), 'pin', ends)
    rank(member[1], tenant, INF)
    redis.call('ZADD', P .. 'due', ends, member[1])
    lives[#lives + 1] = math.ceil(ends - NOW)
  end
  return {1, pinned + more, #members, lives}
end

-- ttl, tenant; then members. Returns how many were pinned, and those whose values must live on.
function scripts.unpin()
  even_if_full()
  local freed, refresh = 0, {}
  for at = 4, #ARGV do
    local e = redis.call('HMGET', entry(ARGV[at]), 's', 't', 'pin')
    if e[1] == 'c' and e[2] == ARGV[3] and e[3] ~= '0' then
      unpin(ARGV[at], tonumber(ARGV[2]), refresh)
      freed = freed + 1
    end
  end
  return {freed, refresh}
end

return scripts[ARGV[1]]()
