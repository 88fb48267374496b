-- The journal of the vector memory: what is acknowledged and perhaps not yet durable in Milvus, and how many memories there are.
-- Each script is one atomic change. Keys, by names that KEYS gives in this order:
--
--   pending     hash by memory key: "<sequence> <seconds since the epoch> <body>", the latest write of that memory
--   state       hash: sequence (the last one given), dropped (the highest sequence that was dropped), bytes (of pending),
--               memories (of all counts), counted (1 once the counts are those of the rows in Milvus), embedder and embedder_name (of
--               the model that made the vectors; absent: the bundled one)
--   tenants     set of the tenants (as digests) that have namespaces
--   counts      hash by namespace of one tenant: its memories
--
-- ARGV: the script's name and its arguments.

local script = table.remove(ARGV, 1)
local pending, state, tenants, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local TIME = redis.call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1e6
local STAMP = string.format('%d.%06d', TIME[1], TIME[2])

local scripts = {}

local function number(field) return tonumber(redis.call('HGET', state, field) or 0) end

-- Add a write. seen: the sequence of the memory's pending write when the caller looked, 0 for none; looked_at: the last sequence then.
-- change: what the write adds to the memories of its namespace. Answers {"done", sequence}; {"changed"} when the memory's pending write
-- is another one now, or one that came later may have been dropped since; {"full", bytes} when the journal would outgrow its bounds;
-- {"quota", "memories" or "namespaces"} when the tenant would have more than it may.
function scripts.append(key, seen, looked_at, body, tenant, namespace, change, most_entries, most_bytes, memories_max, namespaces_max)
  local before = redis.call('HGET', pending, key)
  local sequence = before and tonumber(string.match(before, '^%d+')) or 0
  if sequence ~= tonumber(seen) then return {'changed'} end
  if not before and number('dropped') > tonumber(looked_at) then return {'changed'} end
  local grown = #body + 64 - (before and #before or 0)
  local bytes = number('bytes')
  if bytes + grown > tonumber(most_bytes) or (not before and redis.call('HLEN', pending) >= tonumber(most_entries)) then
    return {'full', bytes}
  end
  if tonumber(change) > 0 then
    if redis.call('HEXISTS', counts, namespace) == 0 and redis.call('HLEN', counts) >= tonumber(namespaces_max) then
      return {'quota', 'namespaces'}
    end
    local kept = tonumber(change)
    for _, memories in ipairs(redis.call('HVALS', counts)) do kept = kept + tonumber(memories) end
    if kept > tonumber(memories_max) then return {'quota', 'memories'} end
  end
  local next_sequence = redis.call('HINCRBY', state, 'sequence', 1)
  local entry = string.format('%d %s %s', next_sequence, STAMP, body)
  redis.call('HSET', pending, key, entry)
  redis.call('HINCRBY', state, 'bytes', #entry - (before and #before or 0))
  redis.call('HINCRBY', state, 'memories', change)
  redis.call('HINCRBY', counts, namespace, change)
  redis.call('SADD', tenants, tenant)
  return {'done', next_sequence}
end

-- Drop writes that are durable in Milvus: of each pair of a memory key and a sequence, if that is still the pending one and at least
-- settled_s old. Answers the keys of those that are younger.
function scripts.drop(settled_s, ...)
  local pairs_of = {...}
  local young, dropped, highest, bytes = {}, 0, number('dropped'), 0
  for at = 1, #pairs_of, 2 do
    local entry = redis.call('HGET', pending, pairs_of[at])
    local sequence, stamp = string.match(entry or '', '^(%d+) ([%d.]+) ')
    if sequence == pairs_of[at + 1] and NOW - tonumber(stamp) < tonumber(settled_s) then
      table.insert(young, pairs_of[at])
    elseif sequence == pairs_of[at + 1] then
      redis.call('HDEL', pending, pairs_of[at])
      bytes = bytes + #entry
      dropped = dropped + 1
      highest = math.max(highest, tonumber(sequence))
    end
  end
  if dropped > 0 then
    redis.call('HINCRBY', state, 'bytes', -bytes)
    redis.call('HSET', state, 'dropped', string.format('%d', highest))
  end
  return young
end

-- From now on this model embeds. Answers the name of the one that did, when something is kept that it embedded; else ''.
function scripts.embedded_by(embedder, name, default)
  local before = redis.call('HGET', state, 'embedder') or ''
  if before ~= embedder and (number('memories') > 0 or redis.call('HLEN', pending) > 0) then
    return redis.call('HGET', state, 'embedder_name') or default
  end
  redis.call('HSET', state, 'embedder', embedder, 'embedder_name', name)
  return ''
end

-- Take the counts over from a store that was written before there was a journal. Triples of tenant, namespace, memories. Only the first
-- call does anything; the KEYS from the fourth on are the counts of the tenants in the order in which they first come.
local function take_over(triples)
  if redis.call('HGET', state, 'counted') then return 0 end
  local hashes, known = {}, 3
  for at = 1, #triples, 3 do
    local tenant, namespace, memories = triples[at], triples[at + 1], triples[at + 2]
    if not hashes[tenant] then
      known = known + 1
      hashes[tenant] = KEYS[known]
      redis.call('SADD', tenants, tenant)
    end
    redis.call('HINCRBY', hashes[tenant], namespace, memories)
    redis.call('HINCRBY', state, 'memories', memories)
  end
  redis.call('HSET', state, 'counted', 1)
  return 1
end

-- More triples than unpack takes.
if script == 'take_over' then return take_over(ARGV) end
return scripts[script](unpack(ARGV))
