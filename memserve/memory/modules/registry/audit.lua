-- The audit: a stream of events for each tenant, which every change adds to. Keys are in prelude.lua.
--
-- The stream is bounded in age and in bytes. Events go in batches, each with an event of its own that tells
-- of it. The call's limits come before its other arguments: 0 for none.

local AUDIT_DAYS, AUDIT_MAX_BYTES = tonumber(ARGV[3]), tonumber(ARGV[4])
local DAY_S = 86400
-- How often events that are too old are looked for.
local AUDIT_LOOK_S = 3600
-- Who trims.
local MEMSERVE = 'memserve'

-- who: {tenant, principal}. before, after: JSON or ''. Returns the event's id.
function audit.add_event(who, action, module, before, after)
  return redis.call('XADD', events_key(who.tenant), '*', 'at_s', NOW_TEXT, 'principal', who.principal,
    'action', action, 'module', module, 'before', before, 'after', after)
end

local function size_bytes(tenant) return redis.call('MEMORY', 'USAGE', events_key(tenant)) or 0 end

-- Take the events before an id away, and tell of it. why: retention or released.
local function trim(tenant, before_id, why)
  local first = redis.call('XRANGE', events_key(tenant), '-', '+', 'COUNT', 1)[1]
  local count = redis.call('XTRIM', events_key(tenant), 'MINID', before_id)
  if count == 0 then return end
  local trimmed = cjson.encode({events = count, from = first[1], before = before_id})
  audit.add_event({tenant = tenant, principal = MEMSERVE}, 'trim', '', trimmed, cjson.encode({why = why}))
end

local function trim_old_events(tenant)
  local looked_s = tonumber(redis.call('HGET', audit_key(tenant), 'looked') or 0)
  if AUDIT_DAYS == 0 or NOW_S - looked_s <= AUDIT_LOOK_S then return end
  redis.call('HSET', audit_key(tenant), 'looked', NOW_TEXT)
  local oldest_ms = math.max(0, (NOW_S - AUDIT_DAYS * DAY_S) * 1000)
  trim(tenant, string.format('%d-0', oldest_ms), 'retention')
end

local function trim_released_events(tenant)
  local released = redis.call('HGET', audit_key(tenant), 'released')
  if not released then return end
  local milliseconds, sequence = string.match(released, '^(%d+)-(%d+)$')
  trim(tenant, milliseconds .. '-' .. string.format('%d', tonumber(sequence) + 1), 'released')
end

-- Before a change. Events that are past their days go. Over the bytes, events that were exported and released
-- go too. Returns the bytes when there is no room for another event, else nil.
function audit.bytes_without_room(tenant)
  trim_old_events(tenant)
  if AUDIT_MAX_BYTES == 0 or size_bytes(tenant) <= AUDIT_MAX_BYTES then return nil end
  trim_released_events(tenant)
  local left_bytes = size_bytes(tenant)
  if left_bytes <= AUDIT_MAX_BYTES then return nil end
  return left_bytes
end

-- request: tenant, after (an event's id), limit. Returns as many as fit a page, one at least.
function looks.events(request)
  local last_id = request.after
  return pages.of_batches(tonumber(request.limit), function(entries, count)
    if #entries > 0 then last_id = entries[#entries][1] end
    return redis.call('XRANGE', events_key(request.tenant), '(' .. last_id, '+', 'COUNT', count)
  end)
end

-- request: tenant.
function looks.last_event_id(request)
  local event = redis.call('XREVRANGE', events_key(request.tenant), '+', '-', 'COUNT', 1)[1]
  return event and event[1] or '0-0'
end

-- request: tenant, principal, action, module, before, after. Answers the event's id and time.
function changes.record(request)
  local id = audit.add_event(request, request.action, request.module, request.before, request.after)
  return {'done', id, NOW_TEXT}
end

-- The events up to this one have been exported: they may go when the audit is full.
-- request: tenant, principal, through (an event's id).
function changes.release_audit(request)
  local through = request.through
  local event = redis.call('XRANGE', events_key(request.tenant), through, through, 'COUNT', 1)[1]
  if not event then return {'InvalidField', 'through_event_id', 'the audit has no event ' .. through} end
  redis.call('HSET', audit_key(request.tenant), 'released', through)
  audit.add_event(request, 'release_audit', '', '', cjson.encode({through = through}))
  return {'done'}
end

-- Changes nothing. It is refused where the other changes of the tenant would be. request: tenant.
function changes.check_audit() return {'done'} end
