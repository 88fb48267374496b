-- The end of the ledger's script: run the function that the first argument names. The functions of `scripts`
-- are in the files of their noun.

return scripts[ARGV[1]]()
