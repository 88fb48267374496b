-- Worth: in which order chunks go when room is needed. Keys and fields are in prelude.lua.
--
-- Worth is GreedyDual-Size-Frequency (Cherkasova 1998): clock + uses x seconds saved per MiB, where the clock
-- is the worth of the last victim. A use lifts what stands before the chunk in its chain above it, so that
-- the end of a chain goes before its beginning.
--
-- `to_prolong` collects values whose time to live must be set: `refresh`, members that live on for the
-- ledger's ttl_s, and `pinned`, each member followed by its seconds.

-- What a token of depth takes off: of two chunks that are worth the same, the deeper one goes first.
local WORTH_PER_DEPTH_TOKEN = 1e-10
-- How much more a parent is worth than its child.
local WORTH_STEP = 1e-10
-- A use moves the due time of an ancestor only where that is this part of ttl_s later: else every use would
-- write the whole chain.
local DUE_SLACK = 1 / 10

function worth.new_prolongations() return {refresh = {}, pinned = {}} end

function worth.clock() return tonumber(redis.call('GET', KEY.clock) or '0') end

-- The clock never runs backwards.
function worth.advance_clock(victims_worth)
  if tonumber(victims_worth) > worth.clock() then redis.call('SET', KEY.clock, victims_worth) end
end

function worth.rank(member, tenant, score)
  redis.call('ZADD', KEY.worth, score, member)
  redis.call('ZADD', tenant_worth_key(tenant), score, member)
end

function worth.of(member) return tonumber(redis.call('ZSCORE', KEY.worth, member)) end

-- What a chunk is worth for itself, whatever stands behind it.
function worth.of_own(uses, cost, depth_tokens)
  return worth.clock() + uses * cost - depth_tokens * WORTH_PER_DEPTH_TOKEN
end

-- Lift a chunk and what stands before it above `floor`, and let it live as long as a chunk that was used now.
-- Ends where nothing changes.
function worth.lift_ancestors(parent, floor, ttl_s, to_prolong)
  local due_s, slack_s = NOW_S + ttl_s, ttl_s * DUE_SLACK
  while parent ~= '' do
    local state, tenant, grandparent, pinned_until, worth_after_pin = entries.read(parent,
      FIELD.state, FIELD.tenant, FIELD.parent, FIELD.pinned_until, FIELD.worth_after_pin)
    if state ~= STATE.committed then return end
    if pinned_until ~= NOT_PINNED then
      if tonumber(worth_after_pin) > floor then return end
      floor = floor + WORTH_STEP
      redis.call('HSET', entry_key(parent), FIELD.worth_after_pin, floor)
    else
      local is_changed = false
      local parents_worth = worth.of(parent)
      if parents_worth <= floor then
        parents_worth = floor + WORTH_STEP
        worth.rank(parent, tenant, parents_worth)
        is_changed = true
      end
      if entries.due(parent) < due_s - slack_s then
        entries.set_due(parent, due_s)
        append(to_prolong.refresh, parent)
        is_changed = true
      end
      if not is_changed then return end
      floor = parents_worth
    end
    parent = grandparent
  end
end

-- One chunk of a chain was used. previous: the member that stands before it in the chain and was used too, or
-- nil. floor: what the chunk must be worth more than, or nil. Returns the floor for `previous` where that is
-- the chunk's parent; else its ancestors are lifted here.
local function use_member(member, previous, floor, ttl_s, to_prolong)
  local state, tenant, cost, parent, depth, pinned_until, worth_after_pin = entries.read(member,
    FIELD.state, FIELD.tenant, FIELD.cost, FIELD.parent, FIELD.depth, FIELD.pinned_until,
    FIELD.worth_after_pin)
  if state ~= STATE.committed then return nil end
  local uses = redis.call('HINCRBY', entry_key(member), FIELD.uses, 1)
  local floor_of_parent
  if pinned_until ~= NOT_PINNED then
    -- A pinned chunk stays as it is. Its value must outlive its pin by an ordinary life.
    append(to_prolong.pinned, member, math.max(0, math.ceil(tonumber(pinned_until) - NOW_S)) + ttl_s)
    if not floor then return nil end
    local new_worth_after_pin = math.max(floor + WORTH_STEP, tonumber(worth_after_pin))
    redis.call('HSET', entry_key(member), FIELD.worth_after_pin, new_worth_after_pin)
    floor_of_parent = floor
  else
    local own_worth = worth.of_own(uses, tonumber(cost), tonumber(depth))
    local least_worth = floor and (floor + WORTH_STEP) or 0
    floor_of_parent = math.max(own_worth, worth.of(member), least_worth)
    worth.rank(member, tenant, floor_of_parent)
    entries.set_due(member, NOW_S + ttl_s)
  end
  if parent == previous then return floor_of_parent end
  worth.lift_ancestors(parent, floor_of_parent, ttl_s, to_prolong)
  return nil
end

-- Chunks were used: each is worth more, and each lives on with what stands before it. members: a chain's
-- beginning first.
function worth.use_chain(members, ttl_s, to_prolong)
  local floor = nil
  for number = #members, 1, -1 do
    floor = use_member(members[number], members[number - 1], floor, ttl_s, to_prolong)
  end
end

-- Arguments: ttl_s; then members, a chain's beginning first. Members that the ledger does not know are passed
-- over. Returns the members whose values live on for ttl_s, and pinned members with their seconds.
function scripts.use()
  run_even_if_full()
  local ttl_s = arguments.number()
  local to_prolong = worth.new_prolongations()
  worth.use_chain(arguments.rest(), ttl_s, to_prolong)
  return {to_prolong.refresh, to_prolong.pinned}
end
