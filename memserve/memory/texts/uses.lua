-- Uses of memories and how their answers turned out. ARGV[1]: the operation's name.
-- KEYS[1]: hash of one tenant by memory: "<uses> <last used, seconds> <sum of rewards> <outcomes>".
-- KEYS[2]: hash of one tenant by request id: its recorded outcome, JSON {reward, memories, at_s}.
-- KEYS[3]: zset of one tenant: request ids by the time at which their outcomes were recorded.

local USES_KEY, OUTCOMES_KEY, RECORDED_KEY = KEYS[1], KEYS[2], KEYS[3]

local function read(memory)
  local text = redis.call('HGET', USES_KEY, memory) or '0 0 0 0'
  local uses, last_s, rewards, outcomes = string.match(text, '^(%S+) (%S+) (%S+) (%S+)$')
  return tonumber(uses), tonumber(last_s), tonumber(rewards), tonumber(outcomes)
end

local function write(memory, uses, last_s, rewards, outcomes)
  local text = string.format('%d %.3f %.6f %d', uses, last_s, rewards, outcomes)
  redis.call('HSET', USES_KEY, memory, text)
end

local operations = {}

-- ARGV: time, then memories with how often each was used.
function operations.used()
  local at_s = tonumber(ARGV[2])
  for first = 3, #ARGV, 2 do
    local memory = ARGV[first]
    local uses, last_s, rewards, outcomes = read(memory)
    write(memory, uses + tonumber(ARGV[first + 1]), math.max(last_s, at_s), rewards, outcomes)
  end
  return 1
end

-- ARGV: request id, reward, time, how many outcomes of the tenant are kept, memories (JSON). The outcome of a
-- request takes the place of the one that was recorded before.
function operations.record()
  local id, reward, memories = ARGV[2], tonumber(ARGV[3]), cjson.decode(ARGV[6])
  local before = redis.call('HGET', OUTCOMES_KEY, id)
  if before then
    local known = cjson.decode(before)
    for _, memory in ipairs(known.memories) do
      local uses, last_s, rewards, outcomes = read(memory)
      write(memory, uses, last_s, math.max(0, rewards - known.reward), math.max(0, outcomes - 1))
    end
  end
  for _, memory in ipairs(memories) do
    local uses, last_s, rewards, outcomes = read(memory)
    write(memory, uses, last_s, rewards + reward, outcomes + 1)
  end
  redis.call('HSET', OUTCOMES_KEY, id, cjson.encode({reward = reward, memories = memories}))
  redis.call('ZADD', RECORDED_KEY, ARGV[4], id)
  for _ = 1, redis.call('ZCARD', RECORDED_KEY) - tonumber(ARGV[5]) do
    redis.call('HDEL', OUTCOMES_KEY, redis.call('ZPOPMIN', RECORDED_KEY)[1])
  end
  return 1
end

-- ARGV: memories that are erased.
function operations.forget()
  local removed = 0
  for position = 2, #ARGV do removed = removed + redis.call('HDEL', USES_KEY, ARGV[position]) end
  return removed
end

return operations[ARGV[1]]()
