-- Kept answers. ARGV[1]: the operation's name. Every key is of one tenant, by KEYS[1]:
--   <prefix>:a:<request id>  hash: record, prompt, weights, memories
--   <prefix>:ids             zset: request ids by the time at which they were kept
--   <prefix>:prompts         zset: the same, of those with a prompt
--   <prefix>:m:<memory>      zset: the same, of those that used a memory, or a module version by its digest
--   <prefix>:erased:<memory> when the memory was erased

-- An answer that was under way when a memory of it was erased is not kept. No answer takes longer.
local ERASED_KEPT_S = 3600
local prefix = KEYS[1]

local function now_s()
  local now = redis.call('TIME')
  return tonumber(now[1]) + tonumber(now[2]) / 1e6
end

local function answer_key(id) return prefix .. ':a:' .. id end
local function memory_key(memory) return prefix .. ':m:' .. memory end
local function erased_key(memory) return prefix .. ':erased:' .. memory end
local ids_key, prompts_key = prefix .. ':ids', prefix .. ':prompts'

local function remove(id)
  redis.call('ZREM', ids_key, id)
  redis.call('ZREM', prompts_key, id)
  return redis.call('DEL', answer_key(id))
end

-- Add to a set of request ids. Those that have expired leave it.
local function note(key, id, at_s, kept_s)
  redis.call('ZADD', key, at_s, id)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', at_s - kept_s)
  redis.call('EXPIRE', key, kept_s)
end

local function is_erased(memories, began_s)
  for _, memory in ipairs(memories) do
    local erased_s = redis.call('GET', erased_key(memory))
    if erased_s and tonumber(erased_s) >= began_s then return true end
  end
  return false
end

local operations = {}

-- ARGV: kept_s, answers at most, prompts at most, then for each answer: id, age_s, memories (JSON), record,
-- prompt or ''. Returns how many are kept.
function operations.put()
  local kept_s, most, most_prompts = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
  local at_s, kept = now_s(), 0
  for first = 5, #ARGV, 5 do
    local id, memories = ARGV[first], cjson.decode(ARGV[first + 2])
    if not is_erased(memories, at_s - tonumber(ARGV[first + 1])) then
      local key = answer_key(id)
      redis.call('HSET', key, 'record', ARGV[first + 3], 'memories', ARGV[first + 2])
      redis.call('EXPIRE', key, kept_s)
      note(ids_key, id, at_s, kept_s)
      for _, memory in ipairs(memories) do
        note(memory_key(memory), id, at_s, kept_s)
        redis.call('ZREMRANGEBYRANK', memory_key(memory), 0, -(most + 1))
      end
      if ARGV[first + 4] ~= '' then
        redis.call('HSET', key, 'prompt', ARGV[first + 4])
        note(prompts_key, id, at_s, kept_s)
      end
      kept = kept + 1
    end
  end
  for _ = 1, redis.call('ZCARD', ids_key) - most do
    remove(redis.call('ZRANGE', ids_key, 0, 0)[1])
  end
  for _ = 1, redis.call('ZCARD', prompts_key) - most_prompts do
    local oldest = redis.call('ZPOPMIN', prompts_key)[1]
    redis.call('HDEL', answer_key(oldest), 'prompt')
  end
  return kept
end

-- ARGV: id, weights. Of an answer that is still kept.
function operations.weigh()
  local key = answer_key(ARGV[2])
  if redis.call('EXISTS', key) == 0 then return 0 end
  redis.call('HSET', key, 'weights', ARGV[3])
  return 1
end

-- ARGV: memory, how many at most. Returns the records of the newest answers that used it.
function operations.of_memory()
  local found = {}
  for _, id in ipairs(redis.call('ZREVRANGE', memory_key(ARGV[2]), 0, tonumber(ARGV[3]) - 1)) do
    local record = redis.call('HGET', answer_key(id), 'record')
    if record then found[#found + 1] = record end
  end
  return found
end

-- ARGV: memories. Returns how many answers have been removed.
function operations.forget()
  local removed = 0
  for place = 2, #ARGV do
    local memory = ARGV[place]
    redis.call('SET', erased_key(memory), now_s(), 'EX', ERASED_KEPT_S)
    for _, id in ipairs(redis.call('ZRANGE', memory_key(memory), 0, -1)) do
      removed = removed + remove(id)
    end
    redis.call('DEL', memory_key(memory))
  end
  return removed
end

return operations[ARGV[1]]()
