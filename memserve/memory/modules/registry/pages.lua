-- Pages: answers that are bounded by a number of entries and by their size. An entry is a text or a list of
-- texts.

-- Of JSON.
local PAGE_BYTES = 2 * 1024 * 1024
local BATCH_ENTRIES = 16

local function size_of(entry)
  if type(entry) ~= 'table' then return #tostring(entry) end
  local size_bytes = 0
  for _, part in ipairs(entry) do size_bytes = size_bytes + size_of(part) end
  return size_bytes
end

-- Adds entries until a page is full. An entry that is larger than a page is a page.
local function new_page()
  local page, size_bytes = {entries = {}}, 0

  -- False when the entry does not fit.
  function page.add(entry)
    size_bytes = size_bytes + size_of(entry)
    if #page.entries > 0 and size_bytes > PAGE_BYTES then return false end
    page.entries[#page.entries + 1] = entry
    return true
  end

  return page
end

-- keys: up to limit + 1. read: a key's entry, false for none.
-- Returns the entries of the first keys, and the last key that was read where there are more, else ''.
function pages.of_keys(keys, limit, read)
  local page = new_page()
  for position, entry_key in ipairs(keys) do
    if position > limit then return {page.entries, keys[position - 1]} end
    local entry = read(entry_key)
    if entry and not page.add(entry) then return {page.entries, keys[position - 1]} end
  end
  return {page.entries, ''}
end

-- read: the next entries after those of the page so far, as many as asked or all that there are. It is called
-- until the page is full: no more is read than a batch beyond it.
function pages.of_batches(limit, read)
  local page = new_page()
  while #page.entries < limit do
    local batch = read(page.entries, math.min(BATCH_ENTRIES, limit - #page.entries))
    for _, entry in ipairs(batch) do
      if not page.add(entry) then return page.entries end
    end
    if #batch < math.min(BATCH_ENTRIES, limit) then return page.entries end
  end
  return page.entries
end
