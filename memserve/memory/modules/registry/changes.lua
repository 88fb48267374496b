-- The changes of the module store. Goes on from module_store.lua, as one script.

-- version: JSON without the number, which it gets here. texts: JSON. gate: JSON or "". moves: "1" or "". claim: a token or "".
-- modules_max, versions_max: how many modules the tenant may have, and versions a module; "" for any number. Answers stored().
function changes.publish(tenant, principal, name, version, texts, gate, moves, claim, modules_max, versions_max)
  local v = cjson.decode(version)
  local kind = redis.call('HGET', key('head', tenant, name), 'kind')
  if kind and kind ~= v.kind then
    return {'InvalidField', 'header.kind', 'module ' .. name .. ' is of the kind ' .. kind .. ', and a module has one kind'}
  end
  local newest = redis.call('ZREVRANGE', key('numbers', tenant, name), 0, 0)[1]
  if newest then
    local same = stored(tenant, name, newest)
    local known = cjson.decode(same[1])
    local equal = known.digest == v.digest and known.probes_digest == v.probes_digest and known.base_digest == v.base_digest
    -- One that is being deleted would be acknowledged, and then be gone.
    if equal and usable(tenant, name, newest) then
      unclaim(claim, parts_of(v))
      return {'unchanged', unpack(same, 1, 4)}
    end
  end
  if versions_max ~= '' and redis.call('ZCARD', key('numbers', tenant, name)) >= tonumber(versions_max) then
    return {'QuotaReached', 'versions of module ' .. name, tonumber(versions_max), 'max_versions_per_module'}
  end
  if modules_max ~= '' and not newest and redis.call('ZCARD', key('names', tenant)) >= tonumber(modules_max) then
    return {'QuotaReached', 'modules of tenant ' .. tenant, tonumber(modules_max), 'max_modules_per_tenant'}
  end
  local gone = lost(claim, parts_of(v))
  if gone then return {'DigestCondemned', gone} end
  local n = redis.call('HINCRBY', key('head', tenant, name), 'last', 1)
  redis.call('HSET', key('head', tenant, name), 'kind', v.kind)
  version = '{"version":' .. n .. ',' .. string.sub(version, 2)
  redis.call('HSET', key('versions', tenant, name), 'v:' .. n, version, 't:' .. n, texts)
  if gate ~= '' then redis.call('HSET', key('versions', tenant, name), 'g:' .. n, gate) end
  if moves ~= '' then redis.call('HSET', key('versions', tenant, name), 'm:' .. n, moves) end
  redis.call('ZADD', key('numbers', tenant, name), n, n)
  redis.call('ZADD', key('names', tenant), 0, name)
  redis.call('ZADD', key('names', tenant, v.kind), 0, name)
  for _, digest in ipairs(parts_of(v)) do redis.call('SADD', P .. 'references:' .. digest, owner(tenant, name, n)) end
  unclaim(claim, parts_of(v))
  audit(tenant, principal, 'publish', name, '', brief(version))
  return {'done', version, texts, gate ~= '' and gate, moves ~= '' and moves}
end

-- Nil, or the refusal of targets of which more than the part `most` ("" for any) is on versions that have not passed the gate.
local function too_much_ungated(tenant, name, targets, most)
  if most == '' then return nil end
  local ungated, share = {}, 0
  for n, part in pairs(parts(targets)) do
    if not passed(tenant, name, n) then
      ungated[#ungated + 1] = n
      share = share + part
    end
  end
  if share <= tonumber(most) + ROUNDING then return nil end
  table.sort(ungated)
  local limit = tonumber(most) == 0.5 and 'half' or string.format('%g %%', 100 * most)
  return {'InvalidField', 'targets', 'versions that have not passed the gate may have at most ' .. limit .. ' of an alias together: '
    .. 'promote ' .. reference(name, table.concat(ungated, ', ')) .. ' or give more to versions that have passed'}
end

-- targets: JSON. forced: "1" or "". expected: a revision or "". ungated_max: 0 to 1, or "". Answers the alias.
function changes.set_alias(tenant, principal, name, alias, targets, action, reason, forced, expected, ungated_max)
  local present = alias_of(tenant, name, alias)
  local refused = conflict(name, alias, present, expected)
  if refused then return refused end
  for _, share in ipairs(cjson.decode(targets)) do
    if not usable(tenant, name, share.version) then return {'ModuleNotFound', reference(name, share.version)} end
  end
  refused = too_much_ungated(tenant, name, targets, ungated_max)
  if refused then return refused end
  if not present and redis.call('HLEN', key('aliases', tenant, name)) >= ALIASES_MAX then
    return {'InvalidField', 'alias', 'module ' .. name .. ' has ' .. ALIASES_MAX .. ' aliases, and no module has more'}
  end
  local origin = present and present.targets == targets and present.origin or nil
  return point(tenant, principal, name, alias, present, targets, origin, action, reason, forced == '1')
end

-- What the alias was before the present targets, without the version `leaving` (""); then, when it cannot be gone back to, why.
local function earlier(tenant, name, alias, present, leaving)
  local to = present
  -- Whoever leaves a version wants targets without it: an earlier split may have had it too.
  for _ = 1, ROLLBACK_STEPS do
    if to.origin <= 1 then return nil, 'it had no other targets before' end
    -- From the end, which is where Redis finds it fast.
    to = cjson.decode(redis.call('LINDEX', key('history', tenant, name, alias), to.origin - 2 - present.revision))
    if to.targets == '[]' then return to, 'it did not exist before' end
    if leaving == '' or not targets_version(to.targets, leaving) then
      for _, share in ipairs(cjson.decode(to.targets)) do
        if not usable(tenant, name, share.version) then
          return to, 'version ' .. share.version .. ', which it had before, has been deleted'
        end
      end
      return to
    end
  end
  return nil, 'it has had version ' .. leaving .. ' for too many changes'
end

-- keep_rest: leave the other targets as they are, where there are any.
local function go_back(tenant, principal, name, alias, action, reason, expected, leaving, keep_rest)
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then return {'ModuleNotFound', name} end
  local present = alias_of(tenant, name, alias)
  local refused = conflict(name, alias, present, expected)
  if refused then return refused end
  local function no(why) return {'NothingToRollBack', name, alias, why} end
  if not present then return no('it does not exist') end
  if leaving ~= '' and not targets_version(present.targets, leaving) then
    return no('version ' .. leaving .. ' is not among its targets')
  end
  local to, why = earlier(tenant, name, alias, present, leaving)
  local rest = keep_rest and without(present.targets, leaving) or '[]'
  if rest == '[]' then
    if why then return no(why) end
    return point(tenant, principal, name, alias, present, to.targets, to.origin, action, reason, false)
  end
  -- From here a rollback goes where it went before the version came: neither back to the version, nor to what is the same as the rest.
  local origin = to and (alike(rest, to.targets) and to.origin or to.revision + 1) or 1
  return point(tenant, principal, name, alias, present, rest, origin, action, reason, false)
end

-- leaving: a version's number or "". Answers the alias.
function changes.rollback(tenant, principal, name, alias, action, reason, expected, leaving)
  return go_back(tenant, principal, name, alias, action, reason, expected, leaving, false)
end

-- Answers the alias.
function changes.take_out(tenant, principal, name, alias, n, action, reason, expected)
  return go_back(tenant, principal, name, alias, action, reason, expected, n, true)
end

-- Answers what the alias was.
function changes.drop_alias(tenant, principal, name, alias, expected)
  local present = alias_of(tenant, name, alias)
  local refused = conflict(name, alias, present, expected)
  if refused then return refused end
  if not present then return {'ModuleNotFound', reference(name, alias)} end
  redis.call('HDEL', key('aliases', tenant, name), alias)
  add_change(tenant, principal, name, alias, '[]', nil, 'drop', '', false)
  audit(tenant, principal, 'drop', name, shown(alias, present), '')
  return {'done', shown(alias, present)}
end

-- gate: JSON. Answers stored().
function changes.keep_gate(tenant, principal, name, n, gate)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  local function told(report) return report and '{"version":' .. n .. ',"gate":' .. report .. '}' or '' end
  redis.call('HSET', key('versions', tenant, name), 'g:' .. n, gate)
  audit(tenant, principal, 'gate', name, told(version[3]), told(gate))
  return {'done', version[1], version[2], gate, version[4]}
end

-- Answers stored().
function changes.keep_moves_logits(tenant, name, n)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  redis.call('HSET', key('versions', tenant, name), 'm:' .. n, '1')
  return {'done', version[1], version[2], version[3], '1'}
end

function changes.hold(tenant, name, n, token, seconds)
  if not exists(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local other = holder(tenant, name, n)
  local user = other and other ~= token and 'another deletion' or user_of(tenant, name, n)
  if user then return {'VersionInUse', reference(name, n), user} end
  redis.call('HSET', key('versions', tenant, name), 'h:' .. n, cjson.encode({token = token, ends = NOW + tonumber(seconds)}))
  return {'done'}
end

function changes.release(tenant, name, n, token)
  if holder(tenant, name, n) == token then redis.call('HDEL', key('versions', tenant, name), 'h:' .. n) end
  return {'done'}
end

-- token: whose mark must be on it still, "" for no matter.
-- Answers stored(), whether nobody references the digest any more, and whether nobody of this tenant does.
function changes.delete(tenant, principal, name, n, token)
  local version = stored(tenant, name, n)
  if not version[1] then return {'ModuleNotFound', reference(name, n)} end
  local user = user_of(tenant, name, n)
  if not user and token ~= '' and holder(tenant, name, n) ~= token then user = 'requests that may have come since its mark ran out' end
  if user then return {'VersionInUse', reference(name, n), user} end
  local v = cjson.decode(version[1])
  redis.call('HDEL', key('versions', tenant, name), 'v:' .. n, 't:' .. n, 'g:' .. n, 'm:' .. n, 'h:' .. n)
  redis.call('ZREM', key('numbers', tenant, name), n)
  for _, digest in ipairs(parts_of(v)) do redis.call('SREM', P .. 'references:' .. digest, owner(tenant, name, n)) end
  if redis.call('EXISTS', key('numbers', tenant, name)) == 0 then
    redis.call('ZREM', key('names', tenant), name)
    redis.call('ZREM', key('names', tenant, v.kind), name)
  end
  audit(tenant, principal, 'delete', name, brief(version[1]), '')
  unpreload(tenant, name, n, preloaded_on(tenant, name, n))
  local others, tenants_last = redis.call('SMEMBERS', P .. 'references:' .. v.digest), true
  for _, other in ipairs(others) do tenants_last = tenants_last and owned(other) ~= tenant end
  return {'done', version, #others == 0, tenants_last}
end

-- Answers the event's id and time.
function changes.record(tenant, principal, action, module, before, after)
  return {'done', audit(tenant, principal, action, module, before, after), STAMP}
end

function changes.preload(tenant, principal, name, n, worker)
  if not usable(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local v = cjson.decode(stored(tenant, name, n)[1])
  local before = preloading(tenant, name, n)
  redis.call('SADD', key('preloaded', tenant, name) .. n, worker)
  redis.call('HSET', P .. 'preloads', owner(tenant, name, n .. ':' .. worker),
    cjson.encode({digest = v.digest, kind = v.kind, worker_id = worker}))
  audit_preload(tenant, principal, 'preload', name, n, worker, before)
  return {'done'}
end

-- worker: "" takes all away.
function changes.unload(tenant, principal, name, n, worker)
  if not exists(tenant, name, n) then return {'ModuleNotFound', reference(name, n)} end
  local before = preloading(tenant, name, n)
  unpreload(tenant, name, n, worker == '' and preloaded_on(tenant, name, n) or {worker})
  audit_preload(tenant, principal, 'unload', name, n, worker, before)
  return {'done'}
end

function changes.claim(token, seconds, ...)
  local condemned = lost('', {...})
  if condemned then return {'DigestCondemned', condemned} end
  local ms = math.ceil(tonumber(seconds) * 1000)
  for _, digest in ipairs({...}) do
    local claims = P .. 'claims:' .. digest
    redis.call('ZADD', claims, NOW + ms / 1000, token)
    if redis.call('PTTL', claims) < ms then redis.call('PEXPIRE', claims, ms) end
  end
  return {'done'}
end

function changes.unclaim(token, ...)
  unclaim(token, {...})
  return {'done'}
end

-- Answers whether the digest is condemned by this token now.
function changes.condemn(digest, token, seconds)
  local by = redis.call('GET', P .. 'condemned:' .. digest)
  local used = redis.call('EXISTS', P .. 'references:' .. digest) == 1 or redis.call('ZCOUNT', P .. 'claims:' .. digest, NOW, '+inf') > 0
  if used or by and by ~= token then return {'unchanged', false} end
  redis.call('SET', P .. 'condemned:' .. digest, token, 'PX', math.ceil(tonumber(seconds) * 1000))
  return {'done', true}
end

function changes.absolve(digest, token)
  if redis.call('GET', P .. 'condemned:' .. digest) == token then redis.call('DEL', P .. 'condemned:' .. digest) end
  return {'done'}
end

-- The events up to this one have been exported: they may go when the audit is full.
function changes.release_audit(tenant, principal, through)
  local event = redis.call('XRANGE', key('events', tenant), through, through, 'COUNT', 1)[1]
  if not event then return {'InvalidField', 'through_event_id', 'the audit has no event ' .. through} end
  redis.call('HSET', key('audit', tenant), 'released', through)
  audit(tenant, principal, 'release_audit', '', '', cjson.encode({through = through}))
  return {'done'}
end

-- Does nothing but to be refused where the others would be.
function changes.check_audit(tenant) return {'done'} end

-- Changes that an audit without room refuses: those that take trouble away, and that make room, go on.
local AUDITED = {
  publish = true, set_alias = true, drop_alias = true, keep_gate = true, delete = true, record = true, preload = true, unload = true,
  check_audit = true,
}

local look = looks[ARGV[1]]
if look then return look(unpack(ARGV, 5)) end
local done = P .. 'done:' .. ARGV[2]
local told = redis.call('GET', done)
if told then return told end
local full = AUDITED[ARGV[1]] and audit_room(ARGV[5])
local reply = full and {'AuditFull', ARGV[5], full, AUDIT_MAX_BYTES} or changes[ARGV[1]](unpack(ARGV, 5))
told = cjson.encode(reply)
if reply[1] == 'done' then redis.call('SET', done, told, 'PX', DONE_MS) end
return told
