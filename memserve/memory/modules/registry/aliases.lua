-- Aliases: names for the versions that answer, with weights, and their histories. Keys are in prelude.lua.
--
-- Targets are JSON, [{"version": ..., "weight": ...}, ...], kept in the spelling in which they came. An alias
-- is {revision, origin, targets, changed_s}.

local MAX_ALIASES = 256
local MAX_ROLLBACK_STEPS = 1000
local NO_TARGETS = '[]'
-- Shares are quotients: what is equal on paper differs by this much at most.
local ROUNDING = 1e-9

-- The alias, or nil.
function aliases.read(tenant, module, alias)
  local text = redis.call('HGET', aliases_key(tenant, module), alias)
  return text and cjson.decode(text) or nil
end

-- An alias as JSON for clients and the audit. more: further fields, as text.
function aliases.format(alias, state, more)
  return '{"name":' .. cjson.encode(alias) .. ',"targets":' .. state.targets
    .. ',"revision":' .. state.revision .. ',"changed_s":' .. state.changed_s .. (more or '') .. '}'
end

-- All aliases of a module, as JSON.
function aliases.all(tenant, module)
  local texts = {}
  for_each_field(aliases_key(tenant, module), function(alias, text)
    texts[#texts + 1] = aliases.format(alias, cjson.decode(text))
  end)
  return texts
end

local function has_target(targets, number)
  for _, share in ipairs(cjson.decode(targets)) do
    if share.version == tonumber(number) then return true end
  end
  return false
end

-- The targets without a version, in the same spelling.
local function targets_without(targets, number)
  local rest = {}
  for target in string.gmatch(targets, '{[^}]*}') do
    if cjson.decode(target).version ~= tonumber(number) then rest[#rest + 1] = target end
  end
  return '[' .. table.concat(rest, ', ') .. ']'
end

-- Each version's part of the whole, 0 to 1, by version.
local function parts_by_version(targets)
  local total, parts = 0, {}
  for _, share in ipairs(cjson.decode(targets)) do
    total = total + share.weight
    parts[share.version] = share.weight
  end
  for number, weight in pairs(parts) do parts[number] = weight / total end
  return parts
end

local function are_equal_splits(targets, other_targets)
  local other_parts = parts_by_version(other_targets)
  for number, part in pairs(parts_by_version(targets)) do
    if math.abs(part - (other_parts[number] or 0)) > ROUNDING then return false end
  end
  return true
end

-- The alias that targets the version, for a person; or nil.
function aliases.user_of(tenant, module, number)
  local user = nil
  for_each_field(aliases_key(tenant, module), function(alias, text)
    if not user and has_target(cjson.decode(text).targets, number) then user = 'alias ' .. alias end
  end)
  return user
end

-- The refusal of a change that expected another revision, or nil. expected_revision: '' for any.
local function refuse_conflict(request, present)
  local revision = present and present.revision or 0
  local expected = tonumber(request.expected_revision)
  if expected and expected ~= revision then
    return {'AliasConflict', request.module, request.alias, revision, expected}
  end
  return nil
end

-- Add to an alias's history. The next revision's number comes from there, so that it rises across a drop too.
-- request: tenant, principal, module, alias. revision: {targets, action, reason, is_forced, origin}, where
-- the origin is nil for new targets. Returns the alias.
local function add_revision(request, revision)
  local tenant, module, alias = request.tenant, request.module, request.alias
  local number = redis.call('LLEN', history_key(tenant, module, alias)) + 1
  local state = {
    revision = number, origin = revision.origin or number, targets = revision.targets, changed_s = NOW_TEXT,
  }
  redis.call('RPUSH', history_key(tenant, module, alias), cjson.encode({
    revision = number, origin = state.origin, targets = state.targets, at_s = NOW_TEXT,
    principal = request.principal, action = revision.action, reason = revision.reason,
    forced = revision.is_forced,
  }))
  canaries.update(tenant, module, alias, state)
  return state
end

-- Point the alias. present: what it was, or nil. revision: as add_revision() takes it. Answers the alias.
local function point_alias(request, present, revision)
  local alias = request.alias
  local state = add_revision(request, revision)
  redis.call('HSET', aliases_key(request.tenant, request.module), alias, cjson.encode(state))
  local why = ',"reason":' .. cjson.encode(revision.reason) .. ',"forced":' .. tostring(revision.is_forced)
  local before = present and aliases.format(alias, present) or ''
  audit.add_event(request, revision.action, request.module, before, aliases.format(alias, state, why))
  return {'done', aliases.format(alias, state)}
end

-- The refusal of targets of which versions that have not passed the gate have more than the part `most`
-- together, or nil. most: 0 to 1, '' for any.
local function refuse_ungated(tenant, module, targets, most)
  if most == '' then return nil end
  local ungated, ungated_part = {}, 0
  for number, part in pairs(parts_by_version(targets)) do
    if not versions.has_passed_gate(tenant, module, number) then
      ungated[#ungated + 1] = number
      ungated_part = ungated_part + part
    end
  end
  if ungated_part <= tonumber(most) + ROUNDING then return nil end
  table.sort(ungated)
  local limit = tonumber(most) == 0.5 and 'half' or string.format('%g %%', 100 * most)
  return {'InvalidField', 'targets', 'versions that have not passed the gate may have at most ' .. limit
    .. ' of an alias together: promote ' .. reference(module, table.concat(ungated, ', '))
    .. ' or give more to versions that have passed'}
end

-- request: tenant, principal, module, alias, targets, action, reason, forced ('1' or ''), expected_revision,
-- ungated_share_max (0 to 1, or ''). Answers the alias.
function changes.set_alias(request)
  local tenant, module, targets = request.tenant, request.module, request.targets
  local present = aliases.read(tenant, module, request.alias)
  local conflict = refuse_conflict(request, present)
  if conflict then return conflict end
  for _, share in ipairs(cjson.decode(targets)) do
    if not versions.is_usable(tenant, module, share.version) then
      return {'ModuleNotFound', reference(module, share.version)}
    end
  end
  local ungated = refuse_ungated(tenant, module, targets, request.ungated_share_max)
  if ungated then return ungated end
  if not present and redis.call('HLEN', aliases_key(tenant, module)) >= MAX_ALIASES then
    local rule = 'module ' .. module .. ' has ' .. MAX_ALIASES .. ' aliases, and no module has more'
    return {'InvalidField', 'alias', rule}
  end
  return point_alias(request, present, {
    targets = targets, action = request.action, reason = request.reason, is_forced = request.forced == '1',
    origin = present and present.targets == targets and present.origin or nil,
  })
end

-- What the alias was before the present targets, without the version `leaving` ('': any). Then, where that
-- cannot be gone back to, why.
local function find_earlier(request, present, leaving)
  local tenant, module = request.tenant, request.module
  local state = present
  -- Whoever leaves a version wants targets without it: an earlier split may have had it too.
  for _ = 1, MAX_ROLLBACK_STEPS do
    if state.origin <= 1 then return nil, 'it had no other targets before' end
    -- From the end, which is where Redis finds it fast.
    local position = state.origin - 2 - present.revision
    state = cjson.decode(redis.call('LINDEX', history_key(tenant, module, request.alias), position))
    if state.targets == NO_TARGETS then return state, 'it did not exist before' end
    if leaving == '' or not has_target(state.targets, leaving) then
      for _, share in ipairs(cjson.decode(state.targets)) do
        if not versions.is_usable(tenant, module, share.version) then
          return state, 'version ' .. share.version .. ', which it had before, has been deleted'
        end
      end
      return state
    end
  end
  return nil, 'it has had version ' .. leaving .. ' for too many changes'
end

-- request: as changes.rollback() takes it. leaving: the version that is to leave, '' for any. keeps_rest:
-- leave the other targets as they are, where there are any.
local function go_back(request, leaving, keeps_rest)
  local tenant, module, alias = request.tenant, request.module, request.alias
  if not versions.exist(tenant, module) then return {'ModuleNotFound', module} end
  local present = aliases.read(tenant, module, alias)
  local conflict = refuse_conflict(request, present)
  if conflict then return conflict end
  local function refuse(why) return {'NothingToRollBack', module, alias, why} end
  if not present then return refuse('it does not exist') end
  if leaving ~= '' and not has_target(present.targets, leaving) then
    return refuse('version ' .. leaving .. ' is not among its targets')
  end
  local earlier, why_not = find_earlier(request, present, leaving)
  local rest = keeps_rest and targets_without(present.targets, leaving) or NO_TARGETS
  local revision = {action = request.action, reason = request.reason, is_forced = false}
  if rest == NO_TARGETS then
    if why_not then return refuse(why_not) end
    revision.targets, revision.origin = earlier.targets, earlier.origin
  else
    -- A later rollback goes where it went before the version came: neither back to the version, nor to
    -- targets that are the same as the rest.
    revision.targets, revision.origin = rest, 1
    if earlier then
      revision.origin = are_equal_splits(rest, earlier.targets) and earlier.origin or (earlier.revision + 1)
    end
  end
  return point_alias(request, present, revision)
end

-- request: tenant, principal, module, alias, action, reason, expected_revision, leaving (a version's number
-- or ''). Answers the alias.
function changes.rollback(request) return go_back(request, request.leaving, false) end

-- request: tenant, principal, module, alias, number, action, reason, expected_revision. Answers the alias.
function changes.take_out(request) return go_back(request, request.number, true) end

-- request: tenant, principal, module, alias, expected_revision. Answers what the alias was.
function changes.drop_alias(request)
  local tenant, module, alias = request.tenant, request.module, request.alias
  local present = aliases.read(tenant, module, alias)
  local conflict = refuse_conflict(request, present)
  if conflict then return conflict end
  if not present then return {'ModuleNotFound', reference(module, alias)} end
  redis.call('HDEL', aliases_key(tenant, module), alias)
  add_revision(request, {targets = NO_TARGETS, action = 'drop', reason = '', is_forced = false})
  audit.add_event(request, 'drop', module, aliases.format(alias, present), '')
  return {'done', aliases.format(alias, present)}
end

-- request: tenant, module, alias, after (a revision, 0 for the first on), limit. Returns as many as fit a
-- page, one at least; false for a name that never had a version.
function looks.history(request)
  local tenant, module = request.tenant, request.module
  if redis.call('EXISTS', head_key(tenant, module)) == 0 then return false end
  local history = history_key(tenant, module, request.alias)
  return pages.of_batches(tonumber(request.limit), function(entries, count)
    local start = request.after + #entries
    return redis.call('LRANGE', history, start, start + count - 1)
  end)
end
