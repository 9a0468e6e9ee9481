"""Networks, models, data and files of CRN and DAGAN."""
