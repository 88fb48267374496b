-- The journal of the vector memory: what is acknowledged and perhaps not yet durable in Milvus, and how many
-- memories there are. Each script is one atomic change.
--
-- ARGV: the script's name; then names and values of its arguments in turn. `request` has them by name, as
-- text.

-- Hash by memory key: "<sequence> <seconds since the epoch> <body>", the latest write of that memory.
local PENDING_KEY = KEYS[1]
-- Hash with the fields below.
local STATE_KEY = KEYS[2]
-- Set of the tenants (as digests) that have namespaces.
local TENANTS_KEY = KEYS[3]
-- Hash by namespace of one tenant: its memories.
local COUNTS_KEY = KEYS[4]

local STATE = {
  sequence = 'sequence',            -- the last one that was given
  dropped = 'dropped',              -- the highest sequence that was dropped
  bytes = 'bytes',                  -- of the pending writes
  memories = 'memories',            -- the sum of all counts
  counted = 'counted',              -- 1 once the counts are those of the rows in Milvus
  embedder = 'embedder',            -- of the model that made the vectors; absent: the bundled one
  embedder_name = 'embedder_name',
}

-- More than a sequence and a time take in an entry.
local ENTRY_HEAD_BYTES = 64

local TIME = redis.call('TIME')
local NOW_S = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local NOW_TEXT = string.format('%d.%06d', TIME[1], TIME[2])

local scripts = {}

local function read_state(field) return tonumber(redis.call('HGET', STATE_KEY, field) or 0) end

-- The refusal of `change` more memories in a namespace, or nil.
local function refuse_quota(request, change)
  local is_new = redis.call('HEXISTS', COUNTS_KEY, request.namespace) == 0
  if is_new and redis.call('HLEN', COUNTS_KEY) >= tonumber(request.namespaces_max) then
    return {'quota', 'namespaces'}
  end
  local memories = change
  for _, count in ipairs(redis.call('HVALS', COUNTS_KEY)) do memories = memories + tonumber(count) end
  if memories > tonumber(request.memories_max) then return {'quota', 'memories'} end
  return nil
end

-- Add a write. request: key and body of the write, tenant, namespace, the limits entries_max, bytes_max,
-- memories_max and namespaces_max, and
--   seen_sequence  of the memory's pending write when the caller looked, 0 for none
--   last_sequence  the last one that was given, when the caller looked
--   change         what the write adds to the memories of its namespace
-- Answers {"done", sequence}; {"changed"} when the memory's pending write is another one now, or a write that
-- came later may have been dropped since; {"full", bytes} when the journal would outgrow its bounds;
-- {"quota", "memories" or "namespaces"} when the tenant would have more than it may.
function scripts.append(request)
  local key, change = request.key, tonumber(request.change)
  local pending = redis.call('HGET', PENDING_KEY, key)
  local pending_bytes = pending and #pending or 0
  local pending_sequence = pending and tonumber(string.match(pending, '^%d+')) or 0
  if pending_sequence ~= tonumber(request.seen_sequence) then return {'changed'} end
  if not pending and read_state(STATE.dropped) > tonumber(request.last_sequence) then return {'changed'} end
  local bytes = read_state(STATE.bytes)
  local bytes_after = bytes + #request.body + ENTRY_HEAD_BYTES - pending_bytes
  local is_full = not pending and redis.call('HLEN', PENDING_KEY) >= tonumber(request.entries_max)
  if is_full or bytes_after > tonumber(request.bytes_max) then return {'full', bytes} end
  local refusal = change > 0 and refuse_quota(request, change)
  if refusal then return refusal end
  local sequence = redis.call('HINCRBY', STATE_KEY, STATE.sequence, 1)
  local entry = string.format('%d %s %s', sequence, NOW_TEXT, request.body)
  redis.call('HSET', PENDING_KEY, key, entry)
  redis.call('HINCRBY', STATE_KEY, STATE.bytes, #entry - pending_bytes)
  redis.call('HINCRBY', STATE_KEY, STATE.memories, change)
  redis.call('HINCRBY', COUNTS_KEY, request.namespace, change)
  redis.call('SADD', TENANTS_KEY, request.tenant)
  return {'done', sequence}
end

-- Drop writes that are durable in Milvus, where each is still the pending one of its memory and at least
-- settled_s old. request: settled_s, writes (JSON: a list of {key, sequence}, the sequence as text). Answers
-- the keys of the writes that are younger.
function scripts.drop(request)
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

-- From now on this model embeds. request: embedder, name, default (the name of the bundled model). Answers
-- the name of the model that did, when something is kept that it embedded; else ''.
function scripts.embedded_by(request)
  local embedder_before = redis.call('HGET', STATE_KEY, STATE.embedder) or ''
  local is_empty = read_state(STATE.memories) <= 0 and redis.call('HLEN', PENDING_KEY) == 0
  if embedder_before ~= request.embedder and not is_empty then
    return redis.call('HGET', STATE_KEY, STATE.embedder_name) or request.default
  end
  redis.call('HSET', STATE_KEY, STATE.embedder, request.embedder, STATE.embedder_name, request.name)
  return ''
end

-- Take the counts over from a store that was written before there was a journal. Only the first call does
-- anything. request: counts (JSON: a list of {tenant, namespace, memories}). The KEYS from COUNTS_KEY on are
-- the counts of the tenants in the order in which they first come.
function scripts.take_over(request)
  if redis.call('HGET', STATE_KEY, STATE.counted) then return 0 end
  local counts_key_of, next_key = {}, 4
  for _, count in ipairs(cjson.decode(request.counts)) do
    if not counts_key_of[count.tenant] then
      counts_key_of[count.tenant] = KEYS[next_key]
      next_key = next_key + 1
      redis.call('SADD', TENANTS_KEY, count.tenant)
    end
    redis.call('HINCRBY', counts_key_of[count.tenant], count.namespace, count.memories)
    redis.call('HINCRBY', STATE_KEY, STATE.memories, count.memories)
  end
  redis.call('HSET', STATE_KEY, STATE.counted, 1)
  return 1
end

local request = {}
for position = 2, #ARGV, 2 do request[ARGV[position]] = ARGV[position + 1] end
return scripts[ARGV[1]](request)
