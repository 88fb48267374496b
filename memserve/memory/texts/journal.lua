-- The journal of the vector memory: what is acknowledged and perhaps not yet durable in Milvus, what each
-- namespace holds, and the feed of each tenant's changes. Each script is one atomic change.
--
-- ARGV: the script's name; then names and values of its arguments in turn. `request` has them by name, as
-- text.

-- Hash by memory key: "<sequence> <seconds since the epoch> <body>", the latest write of that memory.
local PENDING_KEY = KEYS[1]
-- Hash with the fields below.
local STATE_KEY = KEYS[2]
-- Set of the tenants (as digests) that have namespaces.
local TENANTS_KEY = KEYS[3]
-- Hashes by namespace of one tenant: its live memories, its records, and their bytes.
local LIVE_KEY, RECORDS_KEY, BYTES_KEY = KEYS[4], KEYS[5], KEYS[6]
-- Stream of one tenant's changes. An entry's id is its number among the tenant's changes: the sequence of the
-- write would tell how much other tenants write.
local FEED_KEY = KEYS[7]
-- Hash by tenant: the number of the oldest change that its feed still has, once older ones have left.
local TRIMMED_KEY = KEYS[8]
-- Hash by namespace of one tenant: its pinned memories, JSON {memory id: bytes of its text}.
local PINNED_KEY = KEYS[9]

local STATE = {
  sequence = 'sequence',            -- the last one that was given
  dropped = 'dropped',              -- the highest sequence that was dropped
  bytes = 'bytes',                  -- of the pending writes
  memories = 'memories',            -- the sum of all live memories
  records = 'records',              -- the sum of all records
  counted = 'counted',              -- 1 once the counts are those of the rows in Milvus
  layout = 'layout',                -- 2; absent: memserve 0.1.0, which counted memories alone
  erased = 'erased',                -- the last erasure, while the append-only file may still have its text
  embedder = 'embedder',            -- of the model that made the vectors; absent: the bundled one
  embedder_name = 'embedder_name',
  embedder_before = 'embedder_before',    -- whose collection is left to be dropped
  held_until = 'held_until',              -- until then no write is taken, in seconds since the epoch
  reindexed_by = 'reindexed_by',          -- the gateway that embeds all memories again
  reindexed_until = 'reindexed_until',    -- until then it has to say so again
}

-- More than a sequence and a time take in an entry.
local ENTRY_HEAD_BYTES = 64
-- What a memory of 0.1.0 counts for, with its vector, until it is written again: nobody counted it.
local OLD_RECORD_BYTES = 2048

local TIME = redis.call('TIME')
local NOW_S = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local NOW_TEXT = string.format('%d.%06d', TIME[1], TIME[2])

local scripts = {}

local function read_state(field) return tonumber(redis.call('HGET', STATE_KEY, field) or 0) end

local function sum_of(key)
  local sum = 0
  for _, value in ipairs(redis.call('HVALS', key)) do sum = sum + tonumber(value) end
  return sum
end

-- Counts are never below 0, also where a memory of 0.1.0 was larger than it counted for.
local function add_count(key, namespace, change)
  if redis.call('HINCRBY', key, namespace, change) < 0 then redis.call('HSET', key, namespace, 0) end
end

-- What the tenant and the journal have; kept up as the writes of one call are added.
local function read_held()
  return {
    namespaces = redis.call('HLEN', LIVE_KEY), memories = sum_of(LIVE_KEY), bytes = sum_of(BYTES_KEY),
    entries = redis.call('HLEN', PENDING_KEY), journal_bytes = read_state(STATE.bytes),
    dropped = read_state(STATE.dropped),
  }
end

local function refuse_quota(request, held, write)
  local is_new = redis.call('HEXISTS', LIVE_KEY, write.namespace) == 0
  if is_new and held.namespaces >= tonumber(request.namespaces_max) then return {'quota', 'namespaces'} end
  if write.live > 0 and held.memories + write.live > tonumber(request.memories_max) then
    return {'quota', 'memories'}
  end
  if write.bytes > 0 and held.bytes + write.bytes > tonumber(request.tenant_bytes_max) then
    return {'quota', 'memory_bytes'}
  end
  return nil
end

local function read_pinned(namespace)
  return cjson.decode(redis.call('HGET', PINNED_KEY, namespace) or '{}')
end

local function refuse_pinned(request, write)
  if write.pinned_bytes == 0 then return nil end
  local count, bytes = 1, write.pinned_bytes
  for memory_id, text_bytes in pairs(read_pinned(write.namespace)) do
    if memory_id ~= write.memory_id then count, bytes = count + 1, bytes + text_bytes end
  end
  local is_full = count > tonumber(request.pinned_max) or bytes > tonumber(request.pinned_bytes_max)
  return is_full and {'pinned'} or nil
end

local function note_pinned(write)
  local pinned = read_pinned(write.namespace)
  if write.pinned_bytes == 0 and not pinned[write.memory_id] then return end
  pinned[write.memory_id] = write.pinned_bytes > 0 and write.pinned_bytes or nil
  if next(pinned) then
    redis.call('HSET', PINNED_KEY, write.namespace, cjson.encode(pinned))
  else
    redis.call('HDEL', PINNED_KEY, write.namespace)
  end
end

-- The refusal of a write, or nil.
local function refuse(request, held, write, body)
  local pending = redis.call('HGET', PENDING_KEY, write.key)
  local sequence = pending and tonumber(string.match(pending, '^%d+')) or 0
  if sequence ~= write.seen then return {'changed'} end
  if not pending and held.dropped > tonumber(request.last_sequence) then return {'changed'} end
  local bytes_after = held.journal_bytes + #body + ENTRY_HEAD_BYTES - (pending and #pending or 0)
  local is_full = not pending and held.entries >= tonumber(request.entries_max)
  if is_full or bytes_after > tonumber(request.bytes_max) then return {'full', held.journal_bytes} end
  if not write.within_quotas then return nil end
  return refuse_quota(request, held, write) or refuse_pinned(request, write)
end

-- Why no write is taken at all, or nil: memories are embedded by another model, or are just being switched.
local function refuse_all(request)
  if request.embedder then
    local before = scripts.embedded_by(request)
    if before ~= '' then return {'embedder', before} end
  end
  return read_state(STATE.held_until) > NOW_S and {'held'} or nil
end

local function add_to_feed(request, write)
  -- A feed is trimmed, and never empty again.
  local last = redis.call('XREVRANGE', FEED_KEY, '+', '-', 'COUNT', 1)[1]
  local number = last and tonumber(string.match(last[1], '^%d+')) + 1 or 1
  redis.call('XADD', FEED_KEY, string.format('%d-0', number), 'namespace', write.namespace,
    'memory_id', write.memory_id, 'version', write.version, 'action', write.action)
  if redis.call('XTRIM', FEED_KEY, 'MAXLEN', '~', request.feed_max) > 0 then
    local oldest = redis.call('XRANGE', FEED_KEY, '-', '+', 'COUNT', 1)[1][1]
    redis.call('HSET', TRIMMED_KEY, request.tenant, string.match(oldest, '^%d+'))
  end
end

local function add(request, held, write, body)
  local pending = redis.call('HGET', PENDING_KEY, write.key)
  local sequence = redis.call('HINCRBY', STATE_KEY, STATE.sequence, 1)
  local entry = string.format('%d %s ', sequence, NOW_TEXT) .. body
  local grown_bytes = #entry - (pending and #pending or 0)
  if redis.call('HEXISTS', LIVE_KEY, write.namespace) == 0 then held.namespaces = held.namespaces + 1 end
  redis.call('HSET', PENDING_KEY, write.key, entry)
  if write.action == 'erased' then redis.call('HSET', STATE_KEY, STATE.erased, sequence) end
  redis.call('HINCRBY', STATE_KEY, STATE.bytes, grown_bytes)
  redis.call('HINCRBY', STATE_KEY, STATE.memories, write.live)
  redis.call('HINCRBY', STATE_KEY, STATE.records, write.records)
  add_count(LIVE_KEY, write.namespace, write.live)
  add_count(RECORDS_KEY, write.namespace, write.records)
  add_count(BYTES_KEY, write.namespace, write.bytes)
  redis.call('SADD', TENANTS_KEY, request.tenant)
  note_pinned(write)
  add_to_feed(request, write)
  held.memories, held.bytes = held.memories + write.live, held.bytes + write.bytes
  held.entries, held.journal_bytes = held.entries + (pending and 0 or 1), held.journal_bytes + grown_bytes
  return {'done', sequence}
end

-- Add writes of one tenant. request: tenant, the limits entries_max, bytes_max, memories_max, namespaces_max,
-- tenant_bytes_max, feed_max, pinned_max and pinned_bytes_max, body:1, body:2 and so on, what `embedded_by`
-- takes, and
--   last_sequence  the last one that was given, when the caller looked
--   together       1 when either all writes are to be added or none
--   writes         JSON: a list of {key, namespace, memory_id, seen, live, records, bytes, within_quotas,
--                  version, action, pinned_bytes}; `seen` is the sequence of the memory's pending write when
--                  the caller looked, 0 for none; `pinned_bytes` is 0 for a memory that is not pinned now
-- Answers for each write {"done", sequence}; {"changed"} when the memory's pending write is another one now,
-- or a write that came later may have been dropped since; {"full", bytes} when the journal would outgrow its
-- bounds; {"quota", noun} when the tenant would have more than it may; {"pinned"} when the namespace would
-- have more pinned. Or one answer for all: {"held"}, or {"embedder", name} when another model embeds now.
function scripts.append(request)
  local refusal_of_all = refuse_all(request)
  if refusal_of_all then return {refusal_of_all} end
  local writes, held, answers = cjson.decode(request.writes), read_held(), {}
  if request.together == '1' then
    for number, write in ipairs(writes) do
      local refusal = refuse(request, held, write, request['body:' .. number])
      if refusal then
        for each = 1, #writes do answers[each] = refusal end
        return answers
      end
    end
  end
  for number, write in ipairs(writes) do
    local body = request['body:' .. number]
    answers[number] = refuse(request, held, write, body) or add(request, held, write, body)
  end
  return answers
end

-- Drop writes that are durable in Milvus, where each is still the pending one of its memory and at least
-- settled_s old. request: settled_s, writes (JSON: a list of {key, sequence}, the sequence as text). Answers
-- the keys of the writes that are younger. Nothing is dropped, and the answer is the name of the model, when
-- another one embeds than request.embedder.
function scripts.drop(request)
  local embedder = redis.call('HGET', STATE_KEY, STATE.embedder) or ''
  if request.embedder and embedder ~= request.embedder then
    return redis.call('HGET', STATE_KEY, STATE.embedder_name) or request.default
  end
  local young_keys, dropped_count, dropped_bytes, highest = {}, 0, 0, read_state(STATE.dropped)
  for _, write in ipairs(cjson.decode(request.writes)) do
    local entry = redis.call('HGET', PENDING_KEY, write.key)
    local sequence, written_s = string.match(entry or '', '^(%d+) ([%d.]+) ')
    if sequence == write.sequence then
      if NOW_S - tonumber(written_s) < tonumber(request.settled_s) then
        young_keys[#young_keys + 1] = write.key
      else
        redis.call('HDEL', PENDING_KEY, write.key)
        dropped_count, dropped_bytes = dropped_count + 1, dropped_bytes + #entry
        highest = math.max(highest, tonumber(sequence))
      end
    end
  end
  if dropped_count > 0 then
    redis.call('HINCRBY', STATE_KEY, STATE.bytes, -dropped_bytes)
    redis.call('HSET', STATE_KEY, STATE.dropped, string.format('%d', highest))
  end
  return young_keys
end

-- The append-only file was written anew after this erasure. request: erased.
function scripts.rewritten(request)
  if redis.call('HGET', STATE_KEY, STATE.erased) ~= request.erased then return 0 end
  return redis.call('HDEL', STATE_KEY, STATE.erased)
end

-- Forget a namespace that has no record any more. request: namespace. Answers 1 when it is gone.
function scripts.drop_namespace(request)
  if tonumber(redis.call('HGET', RECORDS_KEY, request.namespace) or 0) > 0 then return 0 end
  for _, key in ipairs({LIVE_KEY, RECORDS_KEY, BYTES_KEY, PINNED_KEY}) do
    redis.call('HDEL', key, request.namespace)
  end
  return 1
end

-- From now on this model embeds. request: embedder, name, default (the name of the bundled model). Answers
-- the name of the model that did, when something is kept that it embedded; else ''.
function scripts.embedded_by(request)
  local embedder_before = redis.call('HGET', STATE_KEY, STATE.embedder) or ''
  local kept = math.max(read_state(STATE.memories), read_state(STATE.records))
  local is_empty = kept <= 0 and redis.call('HLEN', PENDING_KEY) == 0
  if embedder_before ~= request.embedder and not is_empty then
    return redis.call('HGET', STATE_KEY, STATE.embedder_name) or request.default
  end
  if embedder_before ~= request.embedder or redis.call('HEXISTS', STATE_KEY, STATE.embedder_name) == 0 then
    redis.call('HSET', STATE_KEY, STATE.embedder, request.embedder, STATE.embedder_name, request.name)
  end
  return ''
end

-- Say that a gateway embeds all memories again, for lease_s seconds from now on; 0: no longer. request: by,
-- lease_s, embedder (the model that has embedded them). Answers '', or why it may not: 'embedder' when that
-- is another model, 'elsewhere' when another gateway does it.
function scripts.reindexing(request)
  if (redis.call('HGET', STATE_KEY, STATE.embedder) or '') ~= request.embedder then return 'embedder' end
  local by = redis.call('HGET', STATE_KEY, STATE.reindexed_by)
  if by and by ~= request.by and read_state(STATE.reindexed_until) > NOW_S then return 'elsewhere' end
  redis.call('HSET', STATE_KEY, STATE.reindexed_by, request.by, STATE.reindexed_until,
    string.format('%.3f', NOW_S + tonumber(request.lease_s)))
  return ''
end

-- Take no writes for so long. request: seconds; 0: take them again. Answers the last sequence.
function scripts.hold(request)
  redis.call('HSET', STATE_KEY, STATE.held_until, string.format('%.3f', NOW_S + tonumber(request.seconds)))
  return redis.call('HGET', STATE_KEY, STATE.sequence) or '0'
end

-- Another model has embedded all memories. What is pending is durable in its collection, and is dropped.
-- request: before, embedder, name, sequence (the last one, as `hold` said it). Answers 0, and changes
-- nothing, when a write may have come since.
function scripts.switch_embedder(request)
  local before = redis.call('HGET', STATE_KEY, STATE.embedder) or ''
  local sequence = redis.call('HGET', STATE_KEY, STATE.sequence) or '0'
  if before ~= request.before or sequence ~= request.sequence or read_state(STATE.held_until) <= NOW_S then
    return 0
  end
  redis.call('DEL', PENDING_KEY)
  redis.call('HSET', STATE_KEY, STATE.embedder, request.embedder, STATE.embedder_name, request.name,
    STATE.embedder_before, before, STATE.dropped, sequence, STATE.bytes, 0)
  redis.call('HDEL', STATE_KEY, STATE.held_until, STATE.reindexed_by, STATE.reindexed_until)
  return 1
end

-- Take the counts over from a store that was written before there was a journal. Only the first call does
-- anything. request: counts (JSON: a list of {tenant, namespace, live, records, bytes, pinned}; `pinned` is
-- what PINNED_KEY has of the namespace, or ''). The KEYS from LIVE_KEY on are four for each tenant, in the
-- order in which the tenants first come: LIVE_KEY, RECORDS_KEY, BYTES_KEY, PINNED_KEY.
function scripts.take_over(request)
  if redis.call('HGET', STATE_KEY, STATE.counted) then return 0 end
  local first_key_of, next_key = {}, 4
  for _, count in ipairs(cjson.decode(request.counts)) do
    if not first_key_of[count.tenant] then
      first_key_of[count.tenant] = next_key
      next_key = next_key + 4
      redis.call('SADD', TENANTS_KEY, count.tenant)
    end
    local first = first_key_of[count.tenant]
    redis.call('HINCRBY', KEYS[first], count.namespace, count.live)
    redis.call('HINCRBY', KEYS[first + 1], count.namespace, count.records)
    redis.call('HINCRBY', KEYS[first + 2], count.namespace, count.bytes)
    if count.pinned ~= '' then redis.call('HSET', KEYS[first + 3], count.namespace, count.pinned) end
    redis.call('HINCRBY', STATE_KEY, STATE.memories, count.live)
    redis.call('HINCRBY', STATE_KEY, STATE.records, count.records)
  end
  redis.call('HSET', STATE_KEY, STATE.counted, 1, STATE.layout, 2)
  return 1
end

-- Bring the counts of memserve 0.1.0 into this layout: it kept live memories alone. Only the first call does
-- anything. The KEYS from LIVE_KEY on are three for each tenant.
function scripts.upgrade(request)
  if read_state(STATE.layout) == 2 or not redis.call('HGET', STATE_KEY, STATE.counted) then return 0 end
  for first = 4, #KEYS, 3 do
    local counts = redis.call('HGETALL', KEYS[first])
    for position = 1, #counts, 2 do
      local namespace, live = counts[position], tonumber(counts[position + 1])
      redis.call('HSET', KEYS[first + 1], namespace, live)
      redis.call('HSET', KEYS[first + 2], namespace, live * OLD_RECORD_BYTES)
    end
  end
  redis.call('HSET', STATE_KEY, STATE.records, read_state(STATE.memories), STATE.layout, 2)
  return 1
end

local request = {}
for position = 2, #ARGV, 2 do request[ARGV[position]] = ARGV[position + 1] end
return scripts[ARGV[1]](request)
